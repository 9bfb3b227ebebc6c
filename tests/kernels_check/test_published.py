"""README on the NF4 failures on an H100: the values in the committed record are those of a sum over the wrong lanes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels_check.execute import _draw, _error, expect
from kernels_check.families import nf4, nf4_weights
from kernels_check.numerics import compare

RECORD = Path(__file__).parents[2] / "results" / "kernels" / "check-cuda-unsloth-2026.10.9.json"
FAILED = [entry for entry in json.loads(RECORD.read_text())["entries"] if entry["status"] == "failed"]
NF4 = [entry for entry in FAILED if entry["family"] == "nf4"]


@pytest.mark.parametrize("entry", NF4, ids=lambda entry: f"{entry['case']}-{entry['dtype']}")
def test_the_wrong_product_is_the_even_columns_of_both_blocks_times_both_scales(entry: dict[str, Any]) -> None:
    """Shuffles over lanes 8, 4, 2, 1 where the block's columns lie in 16, 4, 2, 1: rows of two blocks of 64.

    From the seed alone: that sum for every row gives the record's worst row, its value and its error.
    """
    (case,) = [case for case in nf4.cases() if case.name == entry["case"]]
    expected, dtype = expect(case, entry["dtype"], entry["seed"]), getattr(torch, entry["dtype"])
    inputs = _draw(case, entry["dtype"], entry["seed"])
    packed, (scales, _) = inputs["packed"].flatten().long(), nf4_weights.scales(inputs)
    codes = torch.stack([packed >> 4, packed & 15], 1).view(-1, 128)
    products = inputs["code"].double()[codes] * inputs["X"].double().flatten()
    wrong = (products[:, ::2].sum(1) * scales.view(-1, 2).sum(1)).to(dtype).view(1, 1, -1)
    worst = _error({"Y": compare(wrong, expected.results["Y"], expected.bounds["Y"], dtype)})
    assert worst is not None
    recorded = entry["forward"]
    assert (worst.index, worst.got, worst.expected) == (recorded["index"], recorded["got"], recorded["expected"])
    assert worst.tolerances == pytest.approx(recorded["tolerances"], rel=1e-9)


def test_what_failed_is_what_readme_says() -> None:
    half = ["float16", "bfloat16"]
    assert [(entry["family"], entry["case"], entry["candidate"], entry["dtype"]) for entry in FAILED] == [
        *[("cross_entropy", "strided", "liger", dtype) for dtype in ["float32", *half]],
        *[("nf4", "one token, scales not quantised", "unsloth words", dtype) for dtype in half],
        *[("nf4", "one token, two scales a row", "unsloth words", dtype) for dtype in half],
    ]
