"""Random weights: they load, they are reproducible, and their tensors are what the architecture's own would be."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bench.cache import sha256_file
from bench.cell import Cell
from bench.errors import InputError, StoreError
from bench.models import random_weights, sources
from bench.models.tokenizer import BYTES_AND_SPECIALS, small_tokenizer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="asserts the bytes of the CPU generator")
MakeCell: TypeAlias = Callable[..., Cell]
MakeFolder: TypeAlias = Callable[..., Path]


def resolved(cell: Cell) -> Path:
    return sources.resolve(cell, offline=True).folder


def test_loads_with_its_tokenizer_and_matching_token_ids(cell: MakeCell, config_folder: MakeFolder) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = sources.resolve(cell(config_folder(), "random", seed=5), offline=True)
    assert path.weights == "random" and path.weights_sha256 is None
    assert path.source_detail == "random weights, seed 5, drawn on cpu; architecture: local folder tiny"

    model, loading = AutoModelForCausalLM.from_pretrained(path.folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.dtype == torch.bfloat16 and model.get_input_embeddings().num_embeddings == 600
    assert model.lm_head.weight is model.model.embed_tokens.weight

    tokenizer = AutoTokenizer.from_pretrained(path.folder)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|pad|>")
    for owner in (model.config, model.generation_config):
        assert owner.eos_token_id == tokenizer.eos_token_id and owner.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) <= 600

    chat = [{"role": "user", "content": "Wie viel ist 3 + 4? ✓"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|>user\nWie viel ist 3 + 4? ✓<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.decode(ids["input_ids"][0]) == prompt
    assert torch.isfinite(model(**ids).logits).all()


def test_same_seed_gives_the_same_bytes_and_another_seed_others(
    cell: MakeCell, config_folder: MakeFolder, own_cache: Path
) -> None:
    folder = config_folder()
    first = {p.name: sha256_file(p) for p in sorted(resolved(cell(folder, "random", seed=7)).iterdir())}
    shutil.rmtree(own_cache)
    again = {p.name: sha256_file(p) for p in sorted(resolved(cell(folder, "random", seed=7)).iterdir())}
    other = {p.name: sha256_file(p) for p in sorted(resolved(cell(folder, "random", seed=8)).iterdir())}
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_matrices_are_normal_norms_one_and_the_tied_matrix_is_left_out(
    cell: MakeCell, config_folder: MakeFolder
) -> None:
    tensors = load_file(resolved(cell(config_folder(), "random")) / "model.safetensors")
    assert "lm_head.weight" not in tensors and len(tensors) == 2 + 2 * 9
    embedding = tensors["model.embed_tokens.weight"].float()
    assert embedding.std().item() == pytest.approx(0.05, rel=0.03) and abs(embedding.mean().item()) < 0.002
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16
        assert (tensor == 1).all() if "norm" in name else 0.03 < tensor.float().std().item() < 0.07, name
    q, o = (tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in (0, 1))
    assert not torch.equal(q, o)


def test_gemma_norms_are_zero_and_qwen_biases_are_zero(cell: MakeCell, config_folder: MakeFolder) -> None:
    gemma = config_folder("gemma", model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], eos_token_id=1)
    norms = {n: t for n, t in load_file(resolved(cell(gemma, "random")) / "model.safetensors").items() if "norm" in n}
    assert len(norms) == 1 + 2 * 6 and all((t == 0).all() for t in norms.values())

    qwen = config_folder("qwen", model_type="qwen2", tie_word_embeddings=False, eos_token_id=2)
    tensors = load_file(resolved(cell(qwen, "random")) / "model.safetensors")
    biases = {n: t for n, t in tensors.items() if n.endswith("bias")}
    assert len(biases) == 2 * 3 and all((t == 0).all() for t in biases.values())
    assert "lm_head.weight" in tensors and (tensors["model.norm.weight"] == 1).all()


def test_shards_hold_the_same_tensors_as_one_file(
    cell: MakeCell, config_folder: MakeFolder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    folder = config_folder()
    whole = load_file(resolved(cell(folder, "random")) / "model.safetensors")
    shutil.rmtree(own_cache)
    monkeypatch.setattr(random_weights, "SHARD_BYTES", 20_000)
    sharded = resolved(cell(folder, "random"))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(whole) and len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(sharded / file)[name], whole[name])
    loaded = AutoModelForCausalLM.from_pretrained(sharded).state_dict()
    assert torch.equal(loaded["model.layers.1.mlp.up_proj.weight"], whole["model.layers.1.mlp.up_proj.weight"])


def test_too_small_a_disk_is_told_before_anything_is_written(
    cell: MakeCell, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, 3 * 2**30))
    with pytest.raises(InputError, match=r"(?s)'llama-3.1-8b'.*needs 15\.0 GiB of disk, and 3\.0 GiB are free.*CACHE"):
        sources.resolve(cell("llama-3.1-8b", "random"))
    assert [p for p in (own_cache / "models" / "random").iterdir()] == []


def test_a_disk_that_fills_up_on_the_way_is_told_as_such(
    cell: MakeCell, config_folder: MakeFolder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:  # what safetensors raises on a full file system
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StoreError, match="tiny.*the disk filled up"):
        sources.resolve(cell(config_folder(), "random"))
    assert list((own_cache / "models" / "random").iterdir()) == []


def test_vocabulary_too_small_for_the_tokenizer(cell: MakeCell, config_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match=r"vocab_size 100 is too small.*\n.*at least 259"):
        sources.resolve(cell(config_folder(vocab_size=100), "random"))


def test_unknown_model_type_is_an_input_error(cell: MakeCell, config_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match="cannot build the model"):
        sources.resolve(cell(config_folder(model_type="no-such-type"), "random"))


def test_small_tokenizer_keeps_to_its_limit_and_loses_no_byte() -> None:
    for limit in (BYTES_AND_SPECIALS, 300, 50_000):
        tokenizer = small_tokenizer(limit)
        assert len(tokenizer) <= min(limit, 1024)
        assert max(tokenizer.get_vocab().values()) < limit
        text = "x = 12345;\n\tπ ≈ 3.14 🙂"
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert small_tokenizer(1024).backend_tokenizer.to_str() == small_tokenizer(1024).backend_tokenizer.to_str()
    assert len(small_tokenizer(1024)) > 500  # merges were learnt
