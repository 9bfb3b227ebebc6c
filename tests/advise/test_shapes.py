"""Parameter counts are those of the models that transformers, PEFT and bitsandbytes make."""

from typing import Any

import pytest

from bench.advise.parts import weights_parts
from bench.advise.setup import Setup
from bench.advise.shapes import shape_of
from bench.cell import Cell
from bench.errors import InputError
from bench.models.catalogue import catalogue
from tests.advise.made import config

KINDS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": 32},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32, "num_key_value_heads": 1},
    "gemma3_text": {"head_dim": 32},
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16},
}


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_the_catalogues_models_have_their_published_parameters(name: str) -> None:
    assert shape_of(catalogue()[name].config).parameters == catalogue()[name].published_parameters


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_counts_equal_those_of_transformers_and_peft(kind: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from bench.training import target_modules

    made = AutoConfig.for_model(**config(model_type=kind, **KINDS[kind]))
    shape = shape_of(made.to_dict())
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(made)
    assert shape.parameters == sum(p.numel() for p in model.parameters())

    for targets in ("all-linear", "attention"):
        cell = Cell(model="m", r=6, target_modules=targets)
        with torch.device("meta"):
            fresh: Any = AutoModelForCausalLM.from_config(made)
            adapted = get_peft_model(fresh, LoraConfig(r=6, target_modules=target_modules(cell, fresh)))
        assert shape.trainable(6, targets) == sum(p.numel() for p in adapted.parameters() if p.requires_grad), targets


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_weights_of_smollm2_are_the_bytes_that_lie_in_memory(precision: Any) -> None:
    """Loaded by the backend on a CPU, PEFT's cast to float32 included."""
    from bench.backends.hf_peft import HfPeft
    from bench.models import sources

    cell = Cell(model="smollm2-135m-instruct", source="packaged", precision=precision)
    model = HfPeft().load(cell, sources.resolve(cell).folder)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    quantised = 0
    for parameter in model.parameters():
        if state := getattr(parameter, "quant_state", None):
            tensors = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            held += sum(t.numel() * t.element_size() for t in tensors)
            quantised += 1
        if (scales := getattr(parameter, "SCB", None)) is not None:
            held += scales.numel() * scales.element_size()
    shape = shape_of(catalogue()["smollm2-135m-instruct"].config)
    setup = Setup(backend="hf-peft", precision=precision, r=8, batch=1, sequence=64, kind="on")
    predicted = sum(part.size_bytes for part in weights_parts(shape, setup))
    rounding = quantised * 1024  # tables and offsets fill blocks of 512 bytes on a GPU
    assert 0 <= predicted - held <= rounding + 4 * quantised
    assert (quantised > 0) == (precision == "nf4")


def test_what_is_missing_is_assumed_and_said_or_refused() -> None:
    odd = config(model_type="novel")
    del odd["tie_word_embeddings"], odd["intermediate_size"]
    assert len(shape_of(odd).assumed) == 3 and "Llama-like" in shape_of(odd).assumed[0]
    assert shape_of(config()).assumed == []
    assert shape_of({"text_config": config()}).hidden == 64
    with pytest.raises(InputError, match="my.json: no 'vocab_size' in the configuration"):
        shape_of({k: v for k, v in config().items() if k != "vocab_size"}, "my.json")
    with pytest.raises(InputError, match="target_modules: no module 'w1'"):
        shape_of(config()).trainable(4, ("w1",))
