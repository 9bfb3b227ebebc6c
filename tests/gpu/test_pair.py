"""The main job on a GPU: one suite, pairs of cells that differ in the backend alone, and what must be equal in them."""

from pathlib import Path

import pytest

from bench.derived import derive
from bench.record import Record
from tests.gpu.harness import SMALL_LLAMA, needs_gpu, needs_unsloth, reading, run_suite, write_inputs

pytestmark = [pytest.mark.gpu, needs_gpu, needs_unsloth, pytest.mark.timeout(600)]

STEPS, UNTIMED = 12, 4
BACKENDS, PRECISIONS = ("hf-peft", "unsloth"), ("bf16", "nf4")
LINEAR_LAYERS = 7 * int(str(SMALL_LLAMA["num_hidden_layers"]))
Records = dict[tuple[str, str], Record]

each_precision = pytest.mark.parametrize("precision", PRECISIONS)
each_record = pytest.mark.parametrize("key", [(p, b) for p in PRECISIONS for b in BACKENDS], ids="-".join)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Records by precision and backend, all ok; run once for the module."""
    folder = tmp_path_factory.mktemp("pair")
    recipe = write_inputs(folder) | {
        "packing": "wrapped", "padding_free": "off", "max_length": 512, "batch_size": 2,
        "gradient_accumulation_steps": 2, "max_steps": STEPS, "untimed_steps": UNTIMED,
    }  # fmt: skip
    axes = {"precision": list(PRECISIONS), "backend": list(BACKENDS)}
    made, told = run_suite(folder, {"name": "pair", "timeout_s": 240, "recipe": recipe, "axes": axes})
    found = {(r.cell.precision, r.cell.backend): r for r in made}
    assert {key: (r.status, r.message) for key, r in found.items()} == {
        (p, b): ("ok", None) for p in PRECISIONS for b in BACKENDS
    }, told  # fmt: skip
    return {(str(p), b): r for (p, b), r in found.items()}


@each_precision
def test_both_sides_do_the_same_work(records: Records, precision: str) -> None:
    stock, unsloth = (records[precision, backend] for backend in BACKENDS)
    assert stock.data and unsloth.data and stock.model and unsloth.model
    assert stock.data.stream_sha256 and stock.data.stream_sha256 == unsloth.data.stream_sha256
    assert stock.data.stream_checked_in_forward and unsloth.data.stream_checked_in_forward
    assert stock.adapter.initial_sha256 and stock.adapter.initial_sha256 == unsloth.adapter.initial_sha256
    assert stock.model.parameters_trainable and stock.model.parameters_trainable == unsloth.model.parameters_trainable
    assert stock.model.parameters_total == unsloth.model.parameters_total
    assert stock.steps.padded_tokens == unsloth.steps.padded_tokens == [2 * 2 * 512] * STEPS
    assert stock.steps.trained_tokens == unsloth.steps.trained_tokens


@each_precision
def test_the_first_step_is_the_same(records: Records, precision: str) -> None:
    stock, unsloth = (records[precision, backend].steps for backend in BACKENDS)
    assert stock.loss[0] and stock.grad_norm[0] and stock.loss[0] > 1
    assert unsloth.loss[0] == pytest.approx(stock.loss[0], rel=0.02)
    assert unsloth.grad_norm[0] == pytest.approx(stock.grad_norm[0], rel=0.1)


@each_record
def test_throughput_agrees_with_the_trainers_own_count(records: Records, key: tuple[str, str]) -> None:
    derived = derive(records[key])
    assert derived.timed_steps == STEPS - UNTIMED and derived.trainer is not None
    assert derived.trainer.counts in ("real", "padded")
    assert abs(derived.trainer.relative_difference) < 0.02


@each_record
def test_the_audit_says_whose_code_ran_on_which_weights(records: Records, key: tuple[str, str]) -> None:
    record, (precision, backend) = records[key], key
    assert all(entry.ok for entry in record.audit)
    assert reading(record, "implementation") == ("unsloth" if backend == "unsloth" else "stock")
    assert reading(record, "base_precision") == precision
    assert reading(record, "quantised_modules") == (f"{LINEAR_LAYERS} Linear4bit" if precision == "nf4" else "none")
    fused = int(reading(record, "fused_lora_modules") or 0)
    assert fused > 0 if backend == "unsloth" else fused == 0


@each_record
def test_nvml_sees_at_least_what_torch_reserved(records: Records, key: tuple[str, str]) -> None:
    peaks = derive(records[key]).training_peaks
    nvml, reserved, allocated = peaks["nvml_process"], peaks["torch_reserved"], peaks["torch_allocated"]
    assert nvml and reserved and allocated
    assert nvml >= reserved >= allocated > 0


def test_unsloth_keeps_its_padding_free_batches_on_rows_that_come_tokenised(tmp_path: Path) -> None:
    recipe = write_inputs(tmp_path) | {
        "backend": "unsloth", "padding_free": "on", "max_length": 512, "batch_size": 4, "max_steps": 3,
        "untimed_steps": 1,
    }  # fmt: skip
    (made,), told = run_suite(tmp_path, {"name": "rows", "timeout_s": 240, "recipe": recipe})
    assert made.status == "ok", told
    assert reading(made, "padding_free") == "True"
    assert made.steps.padded_tokens == made.steps.real_tokens
