"""A configuration and a fit for the tests; the records behind the fit are the committed ones, a part of them."""

from functools import cache
from pathlib import Path
from typing import Any

from bench import store
from bench.advise.fit import Fit, calibrate
from bench.store import Loaded

RESULTS = Path(__file__).parents[2] / "results"


def config(**fields: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": False,
    } | fields  # fmt: skip


@cache
def committed() -> tuple[Loaded, ...]:
    """All of results/."""
    return tuple(store.load(RESULTS)[0])


@cache
def records() -> tuple[Loaded, ...]:
    """The speed and accuracy records: three architectures."""
    return tuple(item for item in committed() if item.record.suite in ("h100-speed", "h100-accuracy"))


@cache
def fit() -> Fit:
    return calibrate(records())
