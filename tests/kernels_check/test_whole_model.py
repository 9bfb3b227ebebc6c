"""Whole models: three tiny shapes for real, where Unsloth is installed."""

import importlib.util
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from bench.environment import current
from kernels_check import cli
from kernels_check.whole_model import ModelEntry, ModelRecord, _distance, _unseen, check_models
from kernels_check.whole_model_reference import in_float64
from kernels_check.whole_model_shapes import SHAPES

MISSING = [name for name in ("triton", "unsloth", "unsloth_zoo") if not importlib.util.find_spec(name)]
installed = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def record() -> ModelRecord:
    """In bfloat16, which takes the fused LoRA; ``peftmark kernels model`` runs float32 too."""
    return check_models(dtypes=("bfloat16",))


@installed
@pytest.mark.parametrize("shape", list(SHAPES))
def test_loss_and_every_lora_gradient_agree_with_float64(record: ModelRecord, shape: str) -> None:
    (entry,) = [e for e in record.entries if e.shape == shape]
    assert entry.status == "passed", entry.reason
    assert entry.base_dtype == "bfloat16"
    assert entry.gradients == 28  # two matrices of seven projections in two layers
    assert 0 < (entry.gradient_tolerances or 0) < 1 and 0 < (entry.median_tolerances or 0) < 1
    assert entry.forwards["PeftModelForCausalLM"].startswith("unsloth.")
    assert set(SHAPES[shape].kernels + SHAPES[shape].fused) <= set(entry.launched)


@installed
def test_the_table_names_every_shape(record: ModelRecord, capsys: pytest.CaptureFixture[str]) -> None:
    cli.render_models(record)
    printed = capsys.readouterr().out
    assert all(shape in printed for shape in SHAPES) and "not covered by this run" in printed


def test_what_did_not_run_is_named() -> None:
    launched = dict.fromkeys(SHAPES["llama"].kernels, 1)
    forwards = {"LlamaAttention": "unsloth.models.llama"}
    assert _unseen("llama", "float32", launched, forwards) == []
    assert _unseen("llama", "bfloat16", launched, forwards) == [f"not launched: {n}" for n in SHAPES["llama"].fused]
    stock = _unseen("llama", "float32", launched, {"LlamaAttention": "transformers.models.llama.modeling_llama"})
    assert stock == ["LlamaAttention.forward comes from transformers.models.llama.modeling_llama"]


def test_a_distance_that_is_not_finite_is_infinite() -> None:
    import torch

    ones = torch.ones(3).double()
    assert _distance(ones * 1.5, ones) == pytest.approx(0.5)
    assert _distance(ones * torch.nan, ones) == float("inf")


def test_only_passed_entries_are_ok() -> None:
    passed, idle = (
        ModelEntry.model_validate({"shape": "llama", "dtype": "float32", "status": status})
        for status in ("passed", "not exercised")
    )
    record = {"created": datetime.now(UTC), "versions": {}, "environment": current(), "not_covered": [], "seconds": 0}
    assert ModelRecord.model_validate(record | {"entries": [passed]}).ok
    assert not ModelRecord.model_validate(record | {"entries": [passed, idle]}).ok


def test_the_reference_is_float64_where_transformers_computes_in_float32() -> None:
    """RMS norm and loss: float32 casts would leave errors of 1e-8 and more."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x = torch.randn(4, 33, generator=torch.Generator().manual_seed(0)).double()
    exact = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    norm = LlamaRMSNorm(33, eps=1e-6).double()
    assert _distance(norm(x).detach(), exact) > 1e-9
    with in_float64():
        assert _distance(norm(x).detach(), exact) < 1e-14


def test_an_unknown_shape_is_told() -> None:
    ran = CliRunner().invoke(cli.app, ["model", "--only", "lama"])
    assert ran.exit_code == 2 and "unknown shape 'lama'" in ran.stderr and "'llama'" in ran.stderr
