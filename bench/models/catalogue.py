"""Real architectures by short name: hub id, published parameter count and the true public configuration.

One JSON file a model in ``configs/``. Where a family has a base and an instruct model, the hub id is the instruct one:
training examples go through the chat template, which most base models lack; architecture and size are the same.
``published_parameters`` is the total of the safetensors index; where the file stores a tied output matrix a second time
(Qwen3 0.6B, 4B), it is counted once, as the model card does.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bench.cell import Frozen
from bench.errors import InputError, nearest

CONFIGS_FOLDER = Path(__file__).parent / "configs"


class Entry(Frozen):
    """One architecture of the catalogue."""

    name: str
    """Short name, as written in a suite."""
    hub_id: str
    published_parameters: int
    license_gated: bool
    """The hub asks for a login and an accepted licence before it serves the weights."""
    config: dict[str, Any]
    """The public ``config.json``."""


@cache
def catalogue() -> dict[str, Entry]:
    """Every entry, by name; read once, on the first call."""
    entries = (Entry.model_validate_json(path.read_bytes()) for path in sorted(CONFIGS_FOLDER.glob("*.json")))
    return {entry.name: entry for entry in entries}


def find(model: str) -> Entry | None:
    """The entry with that name or hub id (case ignored), or None."""
    wanted = model.lower()
    return catalogue().get(wanted) or next((e for e in catalogue().values() if e.hub_id.lower() == wanted), None)


def entry(name: str) -> Entry:
    """The entry with that name or hub id; InputError with the nearest name when there is none."""
    if found := find(name):
        return found
    raise InputError(f"model {name!r}", "not in the catalogue", nearest(name.lower(), list(catalogue())))


def hidden_size(model: Entry | Mapping[str, Any]) -> int:
    """Width of the residual stream; a multimodal configuration keeps it under ``text_config``."""
    config = model.config if isinstance(model, Entry) else model
    return int(config.get("text_config", config)["hidden_size"])
