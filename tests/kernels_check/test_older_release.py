"""Releases older than the installed one, seen from a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels_check import loading

ASKS_FOR_A_GPU = """
import torch
if not torch.cuda.is_available():
    raise NotImplementedError("You need a GPU.")
DEVICE_TYPE = "cuda"
"""
PROGRAM = """
from kernels_check import interpreter, loading
loading.register_bare_packages()
interpreter.import_device_types()
import torch
from unsloth.device_type import DEVICE_TYPE
print(DEVICE_TYPE, torch.cuda.is_available())
"""


def test_a_release_that_wants_a_gpu_is_told_that_there_is_one_for_that_import_alone(tmp_path: Path) -> None:
    (tmp_path / "unsloth" / "kernels").mkdir(parents=True)
    (tmp_path / "unsloth" / "__init__.py").touch()  # or an installed one would be found first
    (tmp_path / "unsloth" / "device_type.py").write_text(ASKS_FOR_A_GPU)
    path = os.pathsep.join([str(tmp_path), str(Path(loading.__file__).parents[1])])
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout.split() == ["cuda", "False"], ran.stderr


def test_a_release_without_nf4_kernels_cannot_read_nf4_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from kernels_check.families import nf4_weights

    def absent(module: str) -> None:
        raise loading.Missing(f"no {module}")

    monkeypatch.setattr(loading, "unsloth", absent)
    with pytest.raises(loading.Missing, match="reads NF4 with bitsandbytes' C functions, which need CUDA"):
        nf4_weights.needs_own_reader(torch.zeros(1))
