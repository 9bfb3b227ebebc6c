"""Cells: identity by content, and refusal of what makes no sense."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.cell import Cell, CustomTask


def test_digest_is_of_the_content_alone() -> None:
    a = Cell(model="m", r=8, batch_size=4)
    assert Cell(batch_size=4, r=8, model="m").digest == a.digest
    assert Cell.model_validate(json.loads(a.model_dump_json())).digest == a.digest
    assert len(a.digest) == 16 and int(a.digest, 16) >= 0


def test_digest_is_the_same_in_another_process() -> None:
    code = "from bench.cell import Cell; print(Cell(model='m', target_modules=('q_proj',)).digest)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == Cell(model="m", target_modules=("q_proj",)).digest


OTHER_VALUES: dict[str, Any] = {
    "model": "n", "source": "local", "trust_remote_code": True, "backend": "unsloth", "method": "dora",
    "precision": "nf4", "r": 4, "lora_alpha": "2r", "lora_dropout": 0.1, "target_modules": ("q_proj",),
    "task": "logic", "train_examples": 10, "eval_examples": 10, "eval_max_new_tokens": 10, "eval_batch_size": 1,
    "max_length": 512, "packing": "bfd", "batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 31,
    "untimed_steps": 4, "learning_rate": 1e-3, "lr_scheduler": "cosine", "warmup_steps": 0, "optimizer": "adamw_8bit",
    "weight_decay": 0.0, "max_grad_norm": 0.5, "gradient_checkpointing": "off", "attention": "sdpa", "seed": 0,
    "padding_free": "off", "vram_budget_bytes": 8 * 2**30,
}  # fmt: skip


def test_every_field_is_in_the_digest() -> None:
    cells = [Cell(model="m"), *(Cell(**{"model": "m", name: value}) for name, value in OTHER_VALUES.items())]
    cells.append(Cell(model="m", task="custom", custom_task=CustomTask(path="a.jsonl")))
    assert len({cell.digest for cell in cells}) == len(cells)
    assert set(Cell.model_fields) == {*OTHER_VALUES, "custom_task"}, "a new field needs a value above"


@given(r=st.integers(1, 512), seed=st.integers(0, 2**31), precision=st.sampled_from(["bf16", "nf4", "fp32"]))
def test_twins_differ_in_the_named_fields_alone(r: int, seed: int, precision: str) -> None:
    content: dict[str, Any] = {"model": "m", "r": r, "seed": seed, "precision": precision}
    a, b = Cell(**content, backend="hf-peft"), Cell(**content, backend="unsloth")
    assert a.digest != b.digest
    assert a.twin_key("backend") == b.twin_key("backend")
    assert a.twin_key("backend") != Cell(**{**content, "r": r + 1}, backend="unsloth").twin_key("backend")
    assert a.twin_key("backend", "r") == Cell(**{**content, "r": r + 1}, backend="unsloth").twin_key("backend", "r")


def test_full_fine_tuning_has_no_adapter_fields() -> None:
    cells = {Cell(model="m", method="full", r=r, lora_alpha=64, lora_dropout=0.1).digest for r in (4, 16)}
    assert len(cells) == 1
    assert Cell(model="m", method="full").r is None


def test_alpha_is_a_number_or_a_rule_over_the_rank() -> None:
    assert [Cell(model="m", r=8, lora_alpha=a).alpha for a in ("r", "2r", 5)] == [8, 16, 5]  # type: ignore[arg-type]


def test_slug_names_what_suites_vary() -> None:
    cell = Cell(model="org/Some-Model/", r=8, precision="nf4", backend="unsloth")
    assert cell.slug == f"some-model-lora-r8-nf4-unsloth-{cell.digest[:8]}"
    assert "-full-" in Cell(model="m", method="full").slug


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"modle": "m"}, "modle"),
    "rank 0": ({"r": 0}, "greater than or equal to 1"),
    "no rank": ({"r": None}, "rank of at least 1"),
    "nothing timed": ({"max_steps": 5, "untimed_steps": 5}, r"untimed_steps \(5\) must be below max_steps \(5\)"),
    "accuracy of random weights": ({"source": "random", "eval_examples": 1}, "random weights have no accuracy"),
    "custom without definition": ({"task": "custom"}, "needs a 'custom_task' section"),
    "definition without custom": ({"custom_task": {"path": "a"}}, "only that task takes one"),
    "custom with two sources": ({"task": "custom", "custom_task": {"path": "a", "dataset": "b"}}, "exactly one"),
    "custom with no source": ({"task": "custom", "custom_task": {}}, "exactly one"),
    "full in 4 bits": ({"method": "full", "precision": "nf4"}, "cannot train nf4"),
    "padded bfd": ({"packing": "bfd", "padding_free": "off"}, "always padding-free"),
    "dropout 1": ({"lora_dropout": 1.0}, "less than 1"),
    "unknown precision": ({"precision": "bf61"}, "'bf16'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    fields, told = REFUSED[case]
    with pytest.raises(ValidationError, match=told):
        Cell(**{"model": "m", **fields})


def test_a_cell_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Cell(model="m").r = 4  # type: ignore[misc]
