"""Small configurations, a cache of its own for each test, and a cell builder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.cell import Cell

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 600, "head_dim": 8,
    "initializer_range": 0.05, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": [2, 3],
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("PEFTMARK_CACHE", str(cache))
    return cache


@pytest.fixture
def config_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with a config.json alone: the small Llama's, with the given keys changed."""

    def make(name: str = "tiny", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(LLAMA | changes))
        return folder

    return make


@pytest.fixture
def cell() -> Callable[..., Cell]:
    def make(model: str | Path, source: str, **fields: Any) -> Cell:
        return Cell.model_validate({"model": str(model), "source": source, **fields})

    return make
