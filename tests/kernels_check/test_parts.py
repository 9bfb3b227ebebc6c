"""Poisoned memory, bfloat16 rounding, the guard around inputs, and the command line without a kernel."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench.environment import read_gpus
from kernels_check import cli
from kernels_check.case import expanded_rows, strided
from kernels_check.check import check
from kernels_check.interpreter import to_bfloat16, to_float32
from kernels_check.poison import GUARD_ELEMENTS, Memory, poisoned


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
@settings(max_examples=200, deadline=None)
def test_bfloat16_is_rounded_as_torch_does(values: list[float]) -> None:
    numbers = np.array(values, dtype=np.float32)
    ours, theirs = to_float32(to_bfloat16(numbers)), torch.from_numpy(numbers).bfloat16().float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.bool])
def test_new_tensors_are_poisoned(dtype: torch.dtype) -> None:
    memory = Memory()
    with poisoned(memory):
        made = [
            torch.empty(3, 4, dtype=dtype),
            torch.empty_like(torch.zeros(2, 5, dtype=dtype)),
            torch.zeros(2, dtype=dtype).new_empty((4, 2)),
            torch.empty_strided((2, 3), (1, 2), dtype=dtype),
        ]
    assert [tuple(t.shape) for t in made] == [(3, 4), (2, 5), (4, 2), (2, 3)]
    for tensor in made:
        poison = tensor.isnan() if dtype.is_floating_point else tensor == tensor.flatten()[0]
        assert tensor.dtype == dtype and bool(poison.all())
    assert made[3].stride() == (1, 2) and memory.damage() == []


def test_poisoning_ends_with_the_block() -> None:
    real = torch.empty
    with pytest.raises(ZeroDivisionError), poisoned(Memory()):
        assert torch.empty is not real
        raise ZeroDivisionError
    assert torch.empty is real


@pytest.mark.parametrize("layout", ["dense", "strided", "transposed", "expanded"])
def test_a_guarded_copy_keeps_values_and_strides(layout: str) -> None:
    values = torch.arange(12.0).view(3, 4)
    source = {
        "dense": values, "strided": strided(values), "transposed": values.t(), "expanded": expanded_rows(values[0], 5),
    }[layout]  # fmt: skip
    copy = Memory().copied(source, "x", "cpu")
    assert torch.equal(copy, source) and copy.stride() == source.stride()
    assert copy.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()


@pytest.mark.parametrize(("offset", "side"), [(-1, "before"), (12, "after")])
def test_a_write_beside_a_tensor_is_damage(offset: int, side: str) -> None:
    memory = Memory()
    x = memory.copied(torch.zeros(3, 4), "x", "cpu")
    assert memory.damage() == []
    x.as_strided((1,), (1,), GUARD_ELEMENTS + offset).fill_(7.0)
    assert memory.damage() == [f"1 element(s) written {side} x"]


def test_the_command_line_imports_neither_torch_nor_triton() -> None:
    code = "import sys, kernels_check.cli; print([m for m in ('torch', 'triton', 'numpy') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_unknown_family_is_told_with_the_nearest_name() -> None:
    ran = CliRunner().invoke(cli.app, ["check", "--only", "swiglo"])
    assert ran.exit_code == 2 and "unknown family 'swiglo'" in ran.stderr and "'swiglu'" in ran.stderr


def test_a_folder_without_unsloth_is_told_with_the_mend(tmp_path: Path) -> None:
    ran = CliRunner().invoke(cli.app, ["check", "--unsloth", str(tmp_path)])
    assert ran.exit_code == 2 and "holds no unsloth/kernels" in ran.stderr and "pip install" in ran.stderr


def test_a_process_that_cannot_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "triton.py").write_text("raise ImportError('broken triton')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(Exception, match="broken triton"):
        check("cpu", only=["swiglu"])


@pytest.mark.skipif(bool(read_gpus()[0]), reason="there is a GPU on this machine")
def test_a_gpu_that_is_not_there_is_told_before_anything_runs() -> None:
    ran = CliRunner().invoke(cli.app, ["check", "--device", "cuda"])
    assert ran.exit_code == 2 and "NVML sees no NVIDIA GPU" in ran.stderr and "use --device cpu" in ran.stderr


def test_a_cuda_build_of_torch_does_not_take_the_count_that_it_is_told_for_a_driver() -> None:
    """As pip installs it on a machine without a GPU; Unsloth's fp8 asks each available device when imported."""
    program = (
        "import torch; torch.cuda._is_compiled = lambda: True; from kernels_check import interpreter as i; "
        "i._answer_device_queries(); print(torch.cuda.device_count(), torch.cuda.is_available())"
    )
    env = os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    told = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["1", "False"]
