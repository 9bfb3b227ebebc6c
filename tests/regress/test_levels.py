"""What the levels read from the records of the checks, without running them."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.regress.levels import kernels, model
from kernels_check.families import FAMILIES
from kernels_check.record import Entry, Error, KernelRecord, Status


def entry(status: Status, candidate: str = "unsloth", tolerances: float = 0.5, case: str = "plain") -> Entry:
    error = Error(result="Y", tolerances=tolerances, index=[0], got="1", expected="2", tolerance=1.0)
    reason = None if status == "passed" else "Y: 3 tolerances at (0,)"
    return Entry(family="swiglu", case=case, dtype="float32", candidate=candidate, status=status, reason=reason,
                 forward=error, seed=0)  # fmt: skip


def test_states_of_the_kernels_and_the_worst_error_of_those_that_passed() -> None:
    construct: Any = KernelRecord.model_construct  # the entries are all that is read
    record = construct(entries=[
        entry("passed", tolerances=0.25), entry("passed", tolerances=0.5, case="odd"), entry("passed", "liger"),
        entry("failed", tolerances=3.0, case="huge"), entry("not exercised", case="off"),
        entry("not runnable here", case="fp8"),
    ])  # fmt: skip
    found = {reading.name: reading for reading in kernels.readings(record)}
    assert {name.split("/")[2]: reading.state for name, reading in found.items() if reading.state} == {
        "plain": "good", "odd": "good", "huge": "bad", "off": "bad", "fp8": "unknown",
    }  # fmt: skip
    assert found["kernels/swiglu/huge/float32/unsloth"].values == [3.0]
    worst = found["kernels/swiglu/worst error"]
    assert worst.values == [0.5] and worst.exact


def test_quick_families_exist_and_names_can_be_given() -> None:
    assert set(kernels.QUICK) <= set(FAMILIES)
    assert kernels.families("swiglu,geglu") == ["swiglu", "geglu"] and kernels.families("all") == list(FAMILIES)


@pytest.mark.parametrize(("errors", "reason", "states"), [
    ((0.1, 0.2, 0.1), None, ("good", "good")),
    ((0.1, 0.2, 0.1), "not launched: _rope_embedding_QK", ("good", "bad")),
    ((0.1, 7.0, 0.1), "gradient: 7 tolerances", ("bad", "good")),
    ((0.1, 7.0, 0.1), "gradient: 7 tolerances; not launched: _rope_embedding_QK", ("bad", "bad")),
])  # fmt: skip
def test_a_wrong_model_and_a_kernel_that_did_not_run_are_told_apart(
    tmp_path: Path, errors: tuple[float, float, float], reason: str | None, states: tuple[str, str]
) -> None:
    keys = ("loss_tolerances", "gradient_tolerances", "median_tolerances")
    status = "passed" if not reason else "failed" if max(errors) > 1 else "not exercised"
    content = {"shape": "llama", "dtype": "float32", "status": status, "reason": reason}
    (tmp_path / "entry.json").write_text(json.dumps(content | dict(zip(keys, errors, strict=True))))
    reference, launched = model._parity(tmp_path, "llama", "float32")
    assert (reference.state, launched.state) == states
    assert reference.values == [max(errors)]


def test_a_model_that_crashed_says_why(tmp_path: Path) -> None:
    (tmp_path / "error").write_text("ValueError: other LoRA tensors are trained\nmore")
    (reading,) = model._parity(tmp_path, "llama", "float32")
    assert reading.state == "bad" and reading.text == "crashed: ValueError: other LoRA tensors are trained"
