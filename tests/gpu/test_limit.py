"""The VRAM cap on a real GPU: the boundary is real, NVML's process peak stays inside the budget, and a limit holds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import environment, progress
from bench.cell import Cell
from bench.errors import InputError
from bench.executor import Setting
from bench.limit import probing
from bench.limit.family import COMMON, SIDES, Family
from bench.limit.result import LimitResult
from bench.store import Store
from tests.gpu.harness import ROOT, needs_gpu, needs_unsloth, write_inputs

pytestmark = [pytest.mark.gpu, needs_gpu, pytest.mark.timeout(1500)]

GIB = 2**30
BUDGET = 3 * GIB
CAPPED = f"""
import json, os
from bench import vram_cap
from bench.meters.sampler import GpuReader
told = vram_cap.apply({BUDGET}, vram_cap.RESERVE_BYTES)
import torch
cap, free = int(told["vram_allocator_cap_bytes"]), torch.cuda.mem_get_info()[0]
held, failed = [], None
try:
    while True:
        held.append(torch.ones(2**26, dtype=torch.uint8, device="cuda"))
except torch.OutOfMemoryError as error:
    failed = str(error)
torch.cuda.synchronize()
left = torch.cuda.mem_get_info()[0]
process = GpuReader(0, os.getpid()).memory()[0]
print(json.dumps(told | {{"free": free, "left": left, "held": len(held) * 2**26, "cap": cap, "process": process,
                          "failed": failed}}))
"""


def test_the_allocator_stops_where_the_process_would_pass_the_budget() -> None:
    env = os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CAPPED], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    outside = int(told["vram_outside_allocator_bytes"])
    assert 0.1 * GIB < outside < 1.5 * GIB, "a CUDA context and cuBLAS"
    assert told["cap"] == BUDGET - outside - 32 * 2**20
    assert told["failed"] and "out of memory" in told["failed"]
    assert told["cap"] - 2**27 < told["held"] <= told["cap"]
    assert told["cap"] - 2**26 < told["free"] <= told["cap"] and told["left"] < 2**27
    assert told["held"] + outside <= told["process"] <= BUDGET


@pytest.mark.parametrize("backend", ["hf-peft", pytest.param("unsloth", marks=needs_unsloth)])
def test_at_the_limit_it_trains_and_above_it_does_not(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = search(backend, BUDGET, tmp_path, monkeypatch)
    assert found.value is not None and found.value > 1 and found.first_failing_value is not None
    assert found.first_failing_value <= max(found.value + 1, found.value * 1.05)
    if backend == "hf-peft":
        assert found.validation and found.validation.holds
    trained = [probe for probe in found.probes if probe.fits]
    for probe in trained:
        assert probe.nvml_process_peak_bytes and probe.nvml_process_peak_bytes <= BUDGET
        assert probe.outside_allocator_bytes and 0.1 * GIB < probe.outside_allocator_bytes < 1.5 * GIB
    assert {probe.status for probe in found.probes if not probe.fits} <= {"oom", "ok"}
    assert max(probe.nvml_process_peak_bytes or 0 for probe in trained) > 0.8 * BUDGET, "the limit uses the budget"


def test_a_budget_below_the_context_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"budget of 0.20 GiB leaves nothing for tensors: CUDA's context"):
        search("hf-peft", int(0.2 * GIB), tmp_path, monkeypatch)


def search(backend: str, budget_bytes: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> LimitResult:
    """The largest batch of 1,024 tokens a row, of a small Llama on text of the test's own."""
    monkeypatch.setenv("PEFTMARK_CACHE", str(folder / "cache"))
    inputs: dict[str, Any] = COMMON | SIDES.get(backend, {}) | write_inputs(folder)
    base = Cell.model_validate(
        inputs | {"backend": backend, "max_length": 1024, "vram_budget_bytes": budget_bytes, "precision": "bf16"}
    )
    machine = environment.current()
    setting = Setting(suite="limit-test", base=folder, timeout_s=300, offline=True, environment=machine, device_index=0)
    cells, store = Family("batch_size", base, 2**14), Store(folder / "out")
    with store.locked():
        return probing.run(
            cells, setting, store, lambda: progress.make("quiet"), name="test", validate=backend == "hf-peft"
        )
