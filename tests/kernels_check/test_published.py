"""README on the NF4 failure on an H100: the values in the committed record are those of a sum over the wrong lanes."""

import json
from pathlib import Path

import pytest
import torch

from kernels_check.execute import _draw
from kernels_check.families import nf4

RECORD = Path(__file__).parents[2] / "results" / "kernels" / "check-cuda-unsloth-2026.10.9.json"
FAILED = [entry for entry in json.loads(RECORD.read_text())["entries"]
          if entry["family"] == "nf4" and entry["status"] == "failed"]  # fmt: skip


@pytest.mark.parametrize("entry", FAILED, ids=lambda entry: entry["dtype"])
def test_the_wrong_product_is_the_even_columns_of_both_blocks_times_both_scales(entry: dict) -> None:  # type: ignore[type-arg]
    """Shuffles over lanes 8, 4, 2, 1 where the block's columns lie in 16, 4, 2, 1: rows of two blocks of 64."""
    (case,) = [case for case in nf4.cases() if case.name == entry["case"]]
    inputs = _draw(case, entry["dtype"], entry["seed"])
    row, packed = entry["forward"]["index"][2], inputs["packed"].flatten().long()
    codes = torch.stack([packed >> 4, packed & 15], 1).view(-1, 128)[row]
    products = inputs["code"].double()[codes] * inputs["X"].double().flatten()
    scales = inputs["absmax"].double().view(-1, 2)[row]
    right = (products.view(2, 64).sum(1) * scales).sum().item()
    assert right == pytest.approx(float(entry["forward"]["expected"]), abs=1e-6)
    wrong = torch.tensor(products[::2].sum().item() * scales.sum().item()).to(getattr(torch, entry["dtype"]))
    assert wrong.item() == float(entry["forward"]["got"])


def test_both_dtypes_failed() -> None:
    assert [entry["dtype"] for entry in FAILED] == ["float16", "bfloat16"]
