"""Out of memory is a result: with its phase and last peak, and the next cell runs."""

from pathlib import Path

import pytest

from tests.gpu.harness import needs_gpu, run_suite, write_inputs

pytestmark = [pytest.mark.gpu, needs_gpu, pytest.mark.timeout(600)]


def test_out_of_memory_is_recorded_and_the_next_cell_runs(tmp_path: Path) -> None:
    recipe = write_inputs(tmp_path) | {
        "backend": "hf-peft", "gradient_checkpointing": "off", "packing": "wrapped", "padding_free": "off",
        "max_length": 2048, "gradient_accumulation_steps": 1, "max_steps": 2, "untimed_steps": 1,
    }  # fmt: skip
    include = [{"batch_size": 1024}, {"batch_size": 1}]  # some 80 GB of activations a layer; well under 1 GB
    records, told = run_suite(tmp_path, {"name": "oom", "timeout_s": 200, "recipe": recipe, "include": include})
    assert [(r.cell.batch_size, r.status) for r in records] == [(1024, "oom"), (1, "ok")], told
    broke, ran = records

    assert broke.failed_phase == "warmup"
    assert broke.message and "out of memory" in broke.message
    phase = broke.phase("warmup")
    assert phase is not None and phase.nvml_process_peak_bytes is not None
    assert phase.nvml_process_peak_bytes > 2 * 2**30, "the last peak seen before it broke"
    reserved = phase.torch_reserved_peak_bytes
    assert reserved is not None and reserved > 2 * 2**30
    assert broke.steps.wall_s == [] and len(ran.steps.wall_s) == 2
