"""The memory model as arithmetic: it never falls where it must not, and its parts are the whole."""

import gc
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.advise.parts import (
    CONTEXT,
    SLACK,
    Coefficients,
    estimate,
    loading,
    state_bytes,
    weights_parts,
)
from bench.advise.setup import Setup, setup_of
from bench.advise.shapes import shape_of
from bench.cell import Cell
from bench.errors import InputError
from bench.models.catalogue import catalogue
from tests.advise.made import config

SHAPES = [shape_of(entry.config) for entry in catalogue().values()] + [
    shape_of(config(model_type="mixtral", num_local_experts=8, num_experts_per_tok=2, hidden_size=1024))
]
C = Coefficients()
setups = st.builds(
    Setup, backend=st.sampled_from(["hf-peft", "hf-peft-no-upcast", "unsloth"]),
    precision=st.sampled_from(["bf16", "nf4", "int8"]), r=st.integers(1, 256), batch=st.integers(1, 16),
    sequence=st.integers(8, 8192), kind=st.sampled_from(["off", "on", "offload"]), eager=st.booleans(),
    optimizer=st.sampled_from(["adamw", "adamw_8bit"]), accumulation=st.sampled_from([1, 4]),
    labelled=st.floats(0.01, 1),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SHAPES), setups, st.integers(1, 64))
def test_more_rank_longer_rows_or_more_rows_never_need_less(shape: Any, setup: Setup, more: int) -> None:
    base = estimate(shape, setup, C)
    for name in ("r", "sequence", "batch"):
        larger = estimate(shape, setup.but(**{name: getattr(setup, name) + more}), C)
        for meter in ("torch_allocated", "nvml_process"):
            assert getattr(larger, meter) >= getattr(base, meter), (name, meter)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SHAPES), setups)
def test_parts_are_not_negative_and_sum_to_the_meters(shape: Any, setup: Setup) -> None:
    made = estimate(shape, setup, C)
    sizes = {part.name: part.size_bytes for part in made.parts}
    assert len(sizes) == len(made.parts) and min(sizes.values()) >= 0
    assert made.nvml_process == pytest.approx(sum(sizes.values()))
    assert made.torch_reserved == pytest.approx(sum(sizes.values()) - sizes[CONTEXT])
    tensors = sum(sizes.values()) - sizes[CONTEXT] - sizes[SLACK]
    assert made.torch_allocated == pytest.approx(max(tensors, made.allocated_elsewhere))


def test_torch_allocated_may_peak_at_another_moment_than_the_process() -> None:
    """As the test above found: from 1810 to 1815 tokens the process's peak moves from the loss to the first block."""
    shape = shape_of(catalogue()["qwen3-0.6b"].config)
    short = Setup(backend="hf-peft", precision="int8", r=1, batch=1, sequence=1810, kind="off", eager=False,
                  optimizer="adamw", accumulation=1, labelled=0.2)  # fmt: skip
    made, longer = estimate(shape, short, C), estimate(shape, short.but(sequence=1815), C)
    assert (made.moment, longer.moment) == ("loss", "first") and longer.torch_allocated > made.torch_allocated


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.model_type}-{s.parameters // 10**6}M")
def test_quantised_linear_weights_are_smaller(shape: Any) -> None:
    def linear(precision: str) -> float:
        return weights_parts(shape, Setup("unsloth", precision, 8, 1, 512, "on"))[0].size_bytes

    assert linear("nf4") < linear("int8") < linear("bf16") < linear("fp32")


def test_an_8b_model_by_hand() -> None:
    """Against the arithmetic written out for Llama 3.1 8B with r 16, hf-peft in nf4."""
    shape = shape_of(catalogue()["llama-3.1-8b"].config)
    setup = Setup("hf-peft", "nf4", 16, 2, 2048, "on", accumulation=4, labelled=0.45)
    parts = {part.name: part.size_bytes for part in estimate(shape, setup, C).parts}
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert parts["linear weights"] == pytest.approx(linear * (0.5 + 1 / 64 + 1 / 4096) + 224 * 2048)
    assert parts["embedding, head, norms"] == 4 * (2 * 128256 * 4096 + 65 * 4096)
    assert parts["LoRA weights"] == parts["gradients"] == 41_943_040 * 2
    assert parts["optimizer states"] == pytest.approx(41_943_040 * (2 + 8 / 256))
    assert parts["checkpoints"] == 32 * 4096 * 4096 * 4
    assert parts["block activations"] == 4096 * (18 * 4096 + 6 * 4096 + 4 * 1024 + 14 * 14336 + 2 * 16 * 7 + 4 * 32)


def test_states_follow_the_adapters_dtype_and_the_optimizer() -> None:
    shape = shape_of(catalogue()["llama-3.2-1b"].config)
    trainable = shape.trainable(64)
    base = Setup("hf-peft", "bf16", 64, 1, 512, "on", optimizer="adamw")
    assert state_bytes(shape, base) == 8 * trainable
    assert state_bytes(shape, base.but(precision="nf4")) == 4 * trainable  # TRL makes the adapter bfloat16
    assert state_bytes(shape, base.but(precision="nf4", backend="unsloth")) == 8 * trainable
    assert state_bytes(shape, base.but(optimizer="adamw_8bit")) == pytest.approx(trainable * (2 + 8 / 256))
    tiny = shape_of(config())
    assert state_bytes(tiny, base.but(optimizer="adamw_8bit", r=2)) == 8 * tiny.trainable(2)


def test_loading_counts_the_matrix_that_peft_casts() -> None:
    shape = shape_of(catalogue()["llama-3.1-8b"].config)
    setup = Setup("hf-peft", "nf4", 16, 2, 2048, "on")
    extra = loading(shape, setup, C).torch_allocated - sum(p.size_bytes for p in weights_parts(shape, setup))
    assert extra == 128256 * 4096 * 2
    ready = setup.but(backend="unsloth")
    assert loading(shape, ready, C).torch_allocated == sum(p.size_bytes for p in weights_parts(shape, ready))


def test_checkpointing_is_what_the_backend_makes_of_the_word() -> None:
    def kind(**fields: Any) -> str:
        return setup_of(Cell(model="m", **fields)).kind

    assert kind(backend="hf-peft") == "on" and kind(backend="hf-peft", gradient_checkpointing="off") == "off"
    assert kind(backend="unsloth") == "offload" and kind(backend="unsloth", gradient_checkpointing="on") == "on"
    assert kind(backend="unsloth", max_length=256) == "on"
    with pytest.raises(InputError, match="memory model: backend hf-peft.liger is not modelled"):
        setup_of(Cell(model="m", backend="hf-peft+liger"))
    with pytest.raises(InputError, match="method dora is not modelled"):
        setup_of(Cell(model="m", method="dora"))
    with pytest.raises(InputError, match="float32 base weights are not modelled"):
        setup_of(Cell(model="m", precision="fp32"))


@pytest.mark.parametrize(("kind", "reentrant", "kept"), [
    ("bf16", False, False), ("nf4", False, False), ("int8", False, True), ("int8", True, False),
])  # fmt: skip
def test_checkpointing_drops_the_input_of_a_matrix_but_not_that_of_bitsandbytes_int8(
    kind: str, reentrant: bool, kept: bool
) -> None:
    """What ``inputs of int8 matrices`` rests on; should bitsandbytes mend it, the formula has to follow."""
    import bitsandbytes as bnb
    import torch
    from torch.utils.checkpoint import checkpoint

    matrix = torch.nn.Linear(64, 64).requires_grad_(False)
    if kind == "nf4":
        matrix = bnb.nn.Linear4bit(64, 64, quant_type="nf4").to("cpu")
    if kind == "int8":
        matrix = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False, threshold=6.0)
        matrix.weight = bnb.nn.Int8Params(torch.randn(64, 64), requires_grad=False, has_fp16_weights=False).to("cpu")
    seen = []

    def block(x: torch.Tensor) -> torch.Tensor:
        own = x * 2
        seen.append(weakref.ref(own))
        out: torch.Tensor = matrix(own)
        return out

    out = checkpoint(block, torch.randn(1, 4, 64, requires_grad=True), use_reentrant=reentrant)
    gc.collect()
    assert (seen[0]() is not None) is kept and out.requires_grad


WIDTHS = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
          "intermediate_size": 512, "vocab_size": 320, "tie_word_embeddings": True}  # fmt: skip


@pytest.mark.parametrize(("model_type", "fields"), [
    ("llama", {}), ("qwen3", {}), ("gemma3_text", {"layer_types": ["full_attention"], "query_pre_attn_scalar": 64}),
])  # fmt: skip
def test_a_block_saves_what_is_counted(model_type: str, fields: dict[str, Any]) -> None:
    """hf-peft in bf16 over float32 adapters: the tensors that autograd saves, of a model of two blocks over one's."""
    counted = shape_of(WIDTHS | {"model_type": model_type, "num_hidden_layers": 1})
    setup = Setup("hf-peft", "bf16", 4, 1, 512, "off")
    parts = {part.name: part.size_bytes for part in estimate(counted, setup, Coefficients()).parts}
    one, two = (_saved_bytes(model_type, layers, fields, tokens=512) for layers in (1, 2))
    assert two - one == pytest.approx(parts["block activations"], rel=0.01)


def _saved_bytes(model_type: str, layers: int, fields: dict[str, Any], tokens: int) -> int:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    own = {name: value * layers if isinstance(value, list) else value for name, value in fields.items()}
    config = AutoConfig.for_model(model_type, num_hidden_layers=layers, **WIDTHS, **own)
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config).bfloat16(), LoraConfig(r=4, target_modules="all-linear")
    ).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    own_storage = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor  # kept, so that no address is given out again
        return tensor

    start = torch.randn(1, tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        model(inputs_embeds=start)
    return sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in own_storage)
