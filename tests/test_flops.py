"""FLOP counts against numbers worked out by hand."""

import pytest

from bench.cell import Cell
from bench.errors import InputError
from bench.flops import keys_per_query, peak_bf16_flops, step_flops

TINY = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 32,
}  # fmt: skip
# q and o 8x8, k and v 8x4, gate, up, down 8x16: 64 + 64 + 32 + 32 + 3 * 128 = 576 a block; two blocks and 8x32: 1408.
TINY_WEIGHTS = 1408
# 12 * width 8 * 2 layers * row of 10 keys
TINY_ATTENTION = 1920

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip


def cell(**fields: object) -> Cell:
    return Cell.model_validate({"model": "tiny", **fields})


def test_full_fine_tuning_is_six_a_weight() -> None:
    assert step_flops(TINY, cell(method="full"), tokens=20, sequence_length=10) == 20 * (6 * TINY_WEIGHTS + 1920)


def test_lora_is_four_a_frozen_weight_and_six_an_adapter_weight() -> None:
    # r 4: q, o 4*(8+8) each, k, v 4*(8+4) each, three MLP 4*(8+16) each: 64+64+48+48+288 = 512 a block, 1024 in two
    expected = 20 * (4 * TINY_WEIGHTS + 6 * 1024 + TINY_ATTENTION)
    assert step_flops(TINY, cell(r=4), tokens=20, sequence_length=10) == expected


def test_only_targeted_modules_carry_adapters() -> None:
    frozen = 20 * (4 * TINY_WEIGHTS + TINY_ATTENTION)
    attention_only = step_flops(TINY, cell(r=4, target_modules="attention"), 20, 10)
    assert attention_only == frozen + 20 * 6 * 2 * (64 + 64 + 48 + 48)
    q_only = step_flops(TINY, cell(r=4, target_modules=["q_proj"]), 20, 10)
    assert q_only == frozen + 20 * 6 * 2 * 64


def test_checkpointing_and_precision_do_not_change_model_flops() -> None:
    plain = step_flops(TINY, cell(gradient_checkpointing="off"), 20, 10)
    assert step_flops(TINY, cell(gradient_checkpointing="on"), 20, 10) == plain
    assert step_flops(TINY, cell(precision="nf4"), 20, 10) == plain


def test_head_dim_of_the_config_wins() -> None:
    wide = {**TINY, "head_dim": 4}  # queries 16 wide, keys 8: q, o 128, k, v 64 -> 768 a block
    expected = 20 * (6 * (2 * 768 + 256) + 12 * 16 * 2 * 10)
    assert step_flops(wide, cell(method="full"), 20, 10) == expected


def test_llama_8b_lora_step_is_about_four_times_its_matmul_weights() -> None:
    matmul_weights = 32 * 218_103_808 + 4096 * 128_256  # 7.50e9 of the 8.03e9: the embedding is a lookup
    per_token = step_flops(LLAMA_8B, cell(r=16), tokens=1, sequence_length=2048)
    attention = 12 * 32 * 4096 * 2048
    assert per_token - attention == pytest.approx(4 * matmul_weights, rel=0.01)
    assert attention / per_token == pytest.approx(0.10, abs=0.01)


def test_sliding_layers_meet_their_window_only() -> None:
    gemma = {"num_hidden_layers": 6, "sliding_window": 4, "sliding_window_pattern": 6}
    assert keys_per_query(gemma, 10) == [4, 4, 4, 4, 4, 10]
    named = {"num_hidden_layers": 2, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}
    assert keys_per_query(named, 10) == [10, 4]
    assert keys_per_query(named, 3) == [3, 3]
    off = {"num_hidden_layers": 2, "sliding_window": 4, "use_sliding_window": False}
    assert keys_per_query(off, 10) == [10, 10]


def test_nested_text_config_is_used() -> None:
    assert step_flops({"model_type": "gemma3", "text_config": TINY}, cell(), 20, 10) == step_flops(TINY, cell(), 20, 10)


def test_unknown_architecture_and_module_are_refused() -> None:
    with pytest.raises(InputError, match=r"model_type.*'mixtral'[\s\S]*known: .*llama"):
        step_flops({**TINY, "model_type": "mixtral"}, cell(), 1, 1)
    with pytest.raises(InputError, match=r"target_modules.*'c_attn'[\s\S]*known: q_proj"):
        step_flops(TINY, cell(target_modules=["c_attn"]), 1, 1)


def test_peak_is_known_or_none() -> None:
    assert peak_bf16_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_bf16_flops("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert peak_bf16_flops("Test GPU") is None
