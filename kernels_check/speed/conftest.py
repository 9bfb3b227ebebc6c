"""Options, the GPU's preparation, and what is added to pytest-benchmark's JSON."""

import gc
import time
from pathlib import Path
from typing import Any, TypedDict

import pytest

from kernels_check.speed.timing import EventTimer


class NotTimedEntry(TypedDict):
    """A candidate that was not timed."""

    family: str
    shape: str
    direction: str
    candidate: str
    reason: str


NOT_TIMED = pytest.StashKey[list[NotTimedEntry]]()
STARTED = pytest.StashKey[float]()


def _event() -> Any:
    import torch

    return torch.cuda.Event(enable_timing=True)


def _spin(cycles: int) -> None:
    import torch

    torch.cuda._sleep(cycles)


TIMER = EventTimer(_event, _spin)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What ``run`` passes on."""
    parser.addoption("--family", action="append", help="Time this family; may be given several times.")
    parser.addoption("--middle", action="store_true", help="Time the middle shape only.")
    parser.addoption("--json-file", help="Where pytest-benchmark's JSON goes, after every family.")
    parser.addoption("--limit-s", type=float, default=float("inf"), help="Start nothing new after so many seconds.")


def pytest_configure(config: pytest.Config) -> None:
    """An empty list of what was not timed; the clock of the limit starts."""
    config.stash[NOT_TIMED] = []
    config.stash[STARTED] = time.monotonic()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each operation, direction and candidate."""
    if "kernel" in metafunc.fixturenames:
        from kernels_check.speed.operations import benchmarks

        chosen = benchmarks(metafunc.config.getoption("--family"), quick=metafunc.config.getoption("--middle"))
        made = []
        for item in chosen:
            marks = pytest.mark.benchmark(group=item.group, timer=TIMER.cuda_events)
            made.append(pytest.param(item.id, id=item.id, marks=marks))
        metafunc.parametrize("kernel", made, indirect=True)


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> Any:
    """The benchmark of this name: its name is what the JSON holds of the parameter."""
    from kernels_check.speed.operations import benchmarks

    return next(item for item in benchmarks() if item.id == request.param)


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """Import what every operation needs; ends the run where torch has no CUDA."""
    from kernels_check import child

    child.prepare("cuda")
    import torch

    if not torch.cuda.is_available():
        pytest.exit("torch sees no CUDA device", returncode=2)
    torch.cuda.init()
    gc.collect()
    gc.freeze()  # so that collecting after each benchmark is quick


def pytest_runtest_teardown(item: pytest.Function, nextitem: pytest.Function | None) -> None:
    """After each family the file is written: a later crash cannot take it away."""
    if nextitem is None or _family(item) != _family(nextitem):
        _save(item.config)


def _save(config: pytest.Config) -> None:
    """Write what pytest-benchmark's --benchmark-json writes at the end of a session, by the same hooks."""
    from pytest_benchmark.utils import safe_dumps

    benchmarks, hook = config._benchmarksession.benchmarks, config.hook  # type: ignore[attr-defined]
    file = config.getoption("--json-file")
    if not benchmarks or file is None:
        return
    document = hook.pytest_benchmark_generate_json(
        config=config, benchmarks=benchmarks, include_data=True,
        machine_info=hook.pytest_benchmark_generate_machine_info(config=config),
        commit_info=hook.pytest_benchmark_generate_commit_info(config=config),
    )  # fmt: skip
    hook.pytest_benchmark_update_json(config=config, benchmarks=benchmarks, output_json=document)
    Path(file).write_text(safe_dumps(document, indent=4) + "\n", encoding="utf-8")


def _family(item: pytest.Function) -> str:
    return item.callspec.id.partition("-")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """In place of pytest-benchmark's, which names the host."""
    from bench import environment

    found = environment.current()
    return {
        "cpu": {"brand_raw": found.cpu}, "gpu": [gpu.name for gpu in found.gpus], "system": found.os,
        "python_version": found.python,
    }  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    """In place of pytest-benchmark's, which looks at the folder it is started in."""
    from bench import environment

    found = environment.current()
    return {"id": found.git_revision, "dirty": found.git_dirty, "project": "peftmark", "branch": None, "time": None}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_group_stats(config: pytest.Config, benchmarks: list[Any], group_by: str) -> list[Any]:
    """No table at the end: ``table`` prints one."""
    return []


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """What was not timed, and what machine and software this is."""
    from bench import environment
    from kernels_check import loading

    found = environment.current()
    output_json |= {
        "skipped": config.stash[NOT_TIMED],
        "environment": found.model_dump(mode="json"),
        "versions": {n: loading.version(n) for n in ("unsloth", "unsloth_zoo", "liger_kernel", "triton", "torch")},
        "checks_sha256": environment.harness_sha256(Path(__file__).parents[1]),
        "revision": found.git_revision,
        "seconds": round(time.monotonic() - config.stash[STARTED], 1),
    }
