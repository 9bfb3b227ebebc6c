"""The doctor, on machines made up for the tests and on this one."""

import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import doctor, environment
from bench.doctor import GIB, Check
from bench.environment import Environment, Package
from tests import synthetic

WORKING = {
    "torch": "2.11.0+cu130", "transformers": "5.17.0", "peft": "0.21.0", "trl": "1.15.0", "bitsandbytes": "0.50.2",
    "lm-eval": "0.4.13", "reasoning-gym": "0.1.25", "unsloth": "2026.10.9", "unsloth_zoo": "2026.10.9",
}  # fmt: skip
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def a_healthy_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "torch_build", lambda: "CUDA 13.0")
    monkeypatch.setattr(doctor, "gpu_processes", lambda index: [])
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(100 * GIB, 0, 100 * GIB))


def machine(gpu: str | None = "Test GPU", python: Any = "3.12.1", **versions: Any) -> Environment:
    named = {name.replace("lm_eval", "lm-eval"): version for name, version in versions.items()}
    packages = {k: Package(version=v, source="index") for k, v in (WORKING | named).items() if v}
    return synthetic.environment(gpu=gpu).model_copy(update={"packages": packages, "python": python})


def checks(env: Environment) -> dict[str, Check]:
    found = doctor.diagnose(env)
    assert len({check.name for check in found}) == len(found)
    for check in found:
        assert check.state == "ok" or check.mend or check.name == "/dev/shm", f"{check.name} says no mend"
    return {check.name: check for check in found}


def able(env: Environment) -> list[str]:
    found = doctor.diagnose(env)
    assert doctor.can_run(found) == bool(doctor.runnable(found))
    return doctor.runnable(found)


def test_a_gpu_machine_with_everything_runs_both_backends() -> None:
    found = checks(machine())
    assert able(machine()) == ["hf-peft", "unsloth"]
    assert found["backend hf-peft"].detail == "runs on the GPU"
    assert {name for name, check in found.items() if check.state != "ok"} == {"SmolLM2 weights"}


def test_without_a_gpu_hf_peft_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "torch_build", lambda: "CPU")
    env = machine(gpu=None)
    found = checks(env)
    assert able(env) == ["hf-peft"]
    assert found["backend hf-peft"].detail == "runs on the CPU"
    assert found["backend unsloth"].detail == "needs an NVIDIA GPU"
    assert found["gpu"].state == "limited" and "driver" in str(found["gpu"].mend)


def test_a_cpu_torch_beside_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "torch_build", lambda: "CPU")
    found = checks(machine())
    assert found["torch"].state == "limited" and "cannot use" in found["torch"].detail
    assert found["backend unsloth"].detail == "needs a CUDA build of torch"
    assert able(machine()) == ["hf-peft"]


@pytest.mark.parametrize("package", ["torch", "transformers", "peft", "trl"])
def test_without_a_training_package_nothing_runs(package: str) -> None:
    env = machine(**{package: None})
    found = checks(env)
    assert found[package].state == "missing"
    assert str(found[package].mend).startswith(f'pip install "{package}>=')
    assert able(env) == []
    assert found["backend hf-peft"].mend == found[package].mend


def test_an_old_python_is_missing() -> None:
    assert checks(machine(python="3.10.4"))["python"].state == "missing"
    assert able(machine(python="3.10.4")) == []


@pytest.mark.parametrize(
    ("package", "version", "range_"),
    [("transformers", "5.18.0", "<=5.17.0"), ("trl", "1.16.0", "<=1.15.0"), ("torch", "2.15.0+cu130", "<2.15")],
)
def test_versions_outside_what_unsloth_supports(package: str, version: str, range_: str) -> None:
    found = checks(machine(**{package: version}))
    assert found["unsloth"].state == "limited"
    assert f"{package} {version} (supports {range_})" in found["unsloth"].detail
    assert found["unsloth"].mend == f'pip install "{package}{range_}"'
    assert found["backend unsloth"].state == "limited"


def test_unsloth_and_its_zoo_are_both_needed() -> None:
    for lacking in ("unsloth", "unsloth_zoo"):
        found = checks(machine(**{lacking: None}))
        assert found["unsloth"].state == found["backend unsloth"].state == "missing"
        assert "pip install" in str(found["backend unsloth"].mend)
        assert able(machine(**{lacking: None})) == ["hf-peft"]


def test_optional_packages_limit_what_can_be_asked() -> None:
    found = checks(machine(bitsandbytes=None, lm_eval="0.4.2"))
    assert found["bitsandbytes"].state == "missing" and "nf4" in found["bitsandbytes"].detail
    assert found["lm-eval"].state == "limited" and found["lm-eval"].mend == 'pip install "lm-eval>=0.4.13"'
    assert able(machine(bitsandbytes=None)) == ["hf-peft", "unsloth"]


def test_an_old_gpu_has_no_bf16() -> None:
    env = machine()
    old = env.gpus[0].model_copy(update={"compute_capability": "7.5"})
    found = checks(env.model_copy(update={"gpus": [old]}))
    assert found["gpu 0"].state == "limited" and "fp16" in str(found["gpu 0"].mend)


def test_processes_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_processes", lambda index: [2 * GIB, 3 * GIB])
    found = checks(machine())
    assert found["gpu 0 memory by process"].state == "ok"
    assert found["gpu 0 other processes"].state == "limited"
    assert "2 on the GPU, 5.0 GiB" in found["gpu 0 other processes"].detail

    monkeypatch.setattr(doctor, "gpu_processes", lambda index: [None])
    assert checks(machine())["gpu 0 memory by process"].state == "limited"

    def refuses(index: int) -> list[int | None]:
        raise OSError("Insufficient Permissions")

    monkeypatch.setattr(doctor, "gpu_processes", refuses)
    found = checks(machine())
    assert "Insufficient Permissions" in found["gpu 0 memory by process"].detail
    assert "gpu 0 other processes" not in found


def test_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(100 * GIB, 99 * GIB, GIB))
    found = checks(machine())
    assert found["disk"].state == found["/dev/shm"].state == "limited"
    assert "PEFTMARK_CACHE" in str(found["disk"].mend) and "1.0 GiB" in found["disk"].detail


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path / "file" / "cache"))
    found = checks(machine())
    assert found["disk"].state == "missing" and "PEFTMARK_CACHE" in str(found["disk"].mend)
    assert found["SmolLM2 weights"].state == "missing"


def test_converted_weights_are_found(tmp_path: Path) -> None:
    assert checks(machine())["SmolLM2 weights"].mend == "peftmark fetch demo"
    (tmp_path / "cache" / "models" / "packaged" / "smollm2-135m-instruct-0.1").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "packaged" / ".draft").mkdir()
    found = checks(machine())["SmolLM2 weights"]
    assert found.state == "ok" and found.detail.endswith("cached: smollm2-135m-instruct-0.1")


def test_no_revision() -> None:
    env = machine().model_copy(update={"git_revision": None, "git_dirty": None})
    assert checks(env)["git"].state == "limited"


def test_the_table_holds_every_check_and_what_can_run() -> None:
    found = doctor.diagnose(machine(unsloth=None))
    console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(doctor.render(found))
    shown = console.export_text()
    assert all(check.name in shown and check.detail in shown for check in found)
    assert 'pip install "unsloth>=2026.10" "unsloth_zoo>=2026.10"' in shown
    assert "can run: hf-peft" in shown
    assert all(Check.model_validate_json(check.model_dump_json()) == check for check in found)


def test_this_machine_without_loading_torch() -> None:
    code = """
import sys
from bench import doctor, environment
found = doctor.diagnose(environment.current())
assert not {"torch", "transformers", "unsloth"} & set(sys.modules)
print(doctor.torch_build(), *doctor.runnable(found))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "hf-peft" in out
    if not environment.current().gpus:
        assert "unsloth" not in out


def test_torch_build_is_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    code = "import torch; print('CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU')"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert doctor.torch_build() == out
