"""The timer's arithmetic with made-up events, and the way to pytest-benchmark's file with wall clocks in place of CUDA
events: nothing here is a measurement of a GPU.

This module is also the plugin that the benchmarks' process loads in these tests (see ``pytest_configure``).
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import environment
from bench.errors import InputError
from kernels_check import cli
from kernels_check.page.timings import Timings, speed_rows
from kernels_check.speed import run, table, timing
from kernels_check.speed.timing import CYCLES, MOST_CYCLES, WARM_UP, EventTimer, Rotation, copies_needed

MISSING = [name for name in ("triton", "unsloth", "liger_kernel") if not importlib.util.find_spec(name)]
installed = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


class MadeUpEvent:
    """An event at a given time of a made-up GPU."""

    def __init__(self, at_ms: float, reached: bool) -> None:
        self.at_ms, self.reached, self.recorded, self.waited = at_ms, reached, False, False

    def record(self) -> None:
        self.recorded = True

    def query(self) -> bool:
        return self.reached

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end_event: "MadeUpEvent") -> float:
        assert self.recorded and end_event.recorded and end_event.waited
        return end_event.at_ms - self.at_ms


def _rounds(timer: EventTimer, count: int) -> list[float]:
    elapsed = []
    for _ in range(count):
        timer.prepare()
        start = timer.cuda_events()
        elapsed.append(timer.cuda_events() - start)
    return elapsed


def test_a_pair_of_readings_is_the_time_between_two_fresh_events() -> None:
    made: list[MadeUpEvent] = []

    def event() -> MadeUpEvent:
        made.append(MadeUpEvent(at_ms=len(made) ** 2, reached=False))
        return made[-1]

    spins: list[int] = []
    timer = EventTimer(event, spins.append)
    assert _rounds(timer, 3) == pytest.approx([0.001, 0.005, 0.009])  # squares of 0 1, 2 3, 4 5
    assert spins == [CYCLES] * 3 and timer.cpu_bound == [False] * 3 and len(made) == 6


def test_the_spin_grows_in_warm_up_alone_and_late_rounds_are_counted() -> None:
    reached = iter([True, False] * 2 + [False] * 100)  # whether the spin had ended when the call was queued
    spins: list[int] = []
    timer = EventTimer(lambda: MadeUpEvent(0.0, next(reached)), spins.append)
    _rounds(timer, 2)  # events come in pairs: only the first of each is asked
    assert spins == [CYCLES, 2 * CYCLES] and timer.cycles == 4 * CYCLES
    timer.begin()
    assert timer.cycles == CYCLES and timer.cpu_bound_share == 0.0

    always = EventTimer(lambda: MadeUpEvent(0.0, True), spins.append)
    _rounds(always, WARM_UP + 4)
    assert spins[-4:] == [MOST_CYCLES] * 4 and always.cpu_bound_share == 1.0


def test_a_call_that_raised_leaves_the_timer_ready() -> None:
    timer = EventTimer(lambda: MadeUpEvent(1.0, False), lambda cycles: None)
    timer.cuda_events()  # a start without its end
    assert _rounds(timer, 1) == [0.0] and len(timer.cpu_bound) == 1


def test_copies_exceed_three_caches() -> None:
    l2 = 50 * 2**20
    for size in (1, 10 * 2**20, 50 * 2**20, 149 * 2**20, 4 * 2**30):
        copies = copies_needed(size, l2)
        assert copies * size > 3 * l2 and copies >= 2
    assert copies_needed(50 * 2**20, l2) == 4


def test_what_a_call_overwrote_is_restored_while_another_set_is_in_use() -> None:
    import torch

    sets = [{"X": torch.arange(3.0), "W": torch.ones(2)} for _ in range(2)]
    rotation = Rotation(sets, ("X",))
    first = rotation.next()
    first["X"].zero_()
    second = rotation.next()
    assert second is sets[1] and first["X"].tolist() == [0.0, 1.0, 2.0]
    second["X"].fill_(7.0)
    assert rotation.next() is first and second["X"].tolist() == [0.0, 1.0, 2.0]


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "current", lambda: SimpleNamespace(gpus=[]))
    ran = CliRunner().invoke(cli.app, ["speed", "--out", str(tmp_path / "speed.json")])
    assert ran.exit_code == 2 and "no NVIDIA GPU" in ran.output
    assert not (tmp_path / "speed.json").exists()


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="swigl(.|\n)*swiglu"):
        run.measure(tmp_path / "speed.json", only=["swigl"], limit_s=1.0)


class WallClockEvent:
    """Stands in for torch.cuda.Event where there is no GPU."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        return False

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: "WallClockEvent") -> float:
        return 1000 * (end_event.at - self.at)


def pytest_configure(config: pytest.Config) -> None:
    """In the benchmarks' process, as a plugin: small inputs on the CPU, Triton's interpreter."""
    import torch

    from kernels_check import child
    from kernels_check.speed import operation, operations
    from kernels_check.speed.operation import Shape

    small = Shape(name="llama-8b", hidden=64, inter=128, heads=2, kv_heads=1, head_dim=32, length=3)
    prepare, drawn, real = child.prepare, operation.drawn, torch.cuda.is_available

    def prepared(device: str) -> None:
        prepare("cpu")
        for name, value in {"synchronize": None, "current_device": 0, "is_available": True}.items():
            setattr(torch.cuda, name, lambda value=value: value)
        torch.cuda.init = lambda: setattr(torch.cuda, "is_available", real)  # the kernels' packages ask too
        torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=1, L2_cache_size=1000)

    stand_ins: list[tuple[Any, str, Any]] = [
        (child, "prepare", prepared), (operations, "SHAPES", (small,)), (timing, "ROUNDS", 3),
        (operation, "drawn", lambda item, direction, device: drawn(item, direction, "cpu")),
    ]  # fmt: skip
    for module, name, value in stand_ins:
        setattr(module, name, value)


def pytest_runtest_setup(item: pytest.Function) -> None:
    """In the benchmarks' process: wall clocks; the family of STAND_IN_DIES ends the process."""
    timer = sys.modules["kernels_check.speed.conftest"].TIMER
    timer._make_event, timer._spin = WallClockEvent, lambda cycles: None
    if os.environ.get("STAND_IN_DIES", "no family") in item.name:
        os._exit(3)


def _measured(
    monkeypatch: pytest.MonkeyPatch, out: Path, families: list[str], **options: Any
) -> tuple[Timings, str | None]:
    """``measure`` with this module as the plugin, and without the ceilings, which need a GPU."""
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-p {__name__} -k test_kernel")
    monkeypatch.setattr(environment, "current", lambda: SimpleNamespace(gpus=["a stand-in"]))
    return run.measure(out, only=families, quick=True, **options)


@installed
def test_the_file_is_pytest_benchmarks_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    timings, ended = _measured(monkeypatch, out, ["rms_layernorm"], limit_s=1e9)
    assert ended is None
    raw = json.loads(out.read_text())
    assert {"machine_info", "commit_info", "datetime", "version", "skipped", "environment", "revision"} <= set(raw)
    assert "node" not in raw["machine_info"] and len(raw["checks_sha256"]) == 64
    one = next(b for b in raw["benchmarks"] if b["name"].endswith("backward-unsloth]"))
    assert one["name"] == "test_kernel[rms_layernorm-llama-8b-bfloat16-forward+backward-unsloth]"
    assert one["group"] == "rms_layernorm llama-8b bfloat16 forward+backward"
    assert one["stats"]["rounds"] == 3 and one["options"]["timer"] == "cuda_events"
    info = one["extra_info"]
    assert info["bytes"] == 2 * (6 * 64 * 2) * 2 + 6 * 64 * 2 + 2 * 64 * 2 and info["flops"] == 0
    assert info["dims"] == {"rows": 6, "hidden": 64} and info["copies"] == 2 and info["cpu_bound_rounds"] == 0.0
    rows = speed_rows(timings)["rms_layernorm"]
    assert {row.timed.candidate for row in rows} == {"eager", "unsloth", "liger"} and len(rows) == 6
    assert {(s.candidate, "made no graph" in s.reason) for s in timings.skipped} == {("compile", True)}
    table.render(timings)
    assert "rms_layernorm" in capsys.readouterr().out
    compare = [sys.executable, "-m", "pytest_benchmark", "compare", str(out)]
    ran = subprocess.run(compare, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0 and "rms_layernorm" in ran.stdout, ran.stderr


@installed
def test_a_crash_leaves_the_families_before_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STAND_IN_DIES", "rope")
    timings, ended = _measured(monkeypatch, tmp_path / "speed.json", ["add_rms_layernorm", "rope"], limit_s=1e9)
    assert ended and ended.endswith("3") and set(speed_rows(timings)) == {"add_rms_layernorm"}


def test_where_nothing_was_timed_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=2))
    monkeypatch.setattr(environment, "current", lambda: SimpleNamespace(gpus=["a stand-in"]))
    (tmp_path / "speed.json").write_text("an older run's")
    with pytest.raises(InputError, match="nothing was timed.*ended with 2"):
        run.measure(tmp_path / "speed.json", limit_s=1.0)
