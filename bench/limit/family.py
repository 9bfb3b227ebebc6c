"""The probe cells of one search: equal in all but the value that is searched for, each side with its best settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from bench.cell import Cell
from bench.errors import InputError

What = Literal["max_length", "batch_size", "r"]
GIB = 2**30
UNIT = {"max_length": "tokens a sequence", "batch_size": "sequences a batch", "r": "LoRA rank"}
STEP = {"max_length": 256, "batch_size": 1, "r": 8}
"""Distance of neighbouring values; ranks below 8 are powers of two."""
LARGEST = {"max_length": 2**22, "batch_size": 2**14}

COMMON: dict[str, Any] = {
    "source": "random", "task": "gsm-symbolic", "packing": "wrapped", "padding_free": "off", "batch_size": 1,
    "gradient_accumulation_steps": 1, "max_steps": 2, "untimed_steps": 1, "warmup_steps": 0, "optimizer": "adamw_8bit",
}  # fmt: skip
"""Full rows, so that every position counts; two steps, of which the second meets the optimizer's states."""
SIDES: dict[str, dict[str, Any]] = {
    "unsloth": {"gradient_checkpointing": "unsloth"},
    "fake": {},
}
"""Unsloth's long-context documentation: its offloading checkpointing. Attention is its own choice."""
BASELINE: dict[str, Any] = {"gradient_checkpointing": "on", "attention": "sdpa"}
"""hf-peft and its variants: TRL's guide to reducing memory use. Its activation offloading is no field of a cell."""

TOKENS_PER_EXAMPLE = 128
"""Fewer than the mean of gsm-symbolic under any tokenizer here (random weights' own: 363)."""
SMALLEST_SET = 2000
"""Training sets grow by doubling, so that the probes of a search share a few."""


@dataclass(frozen=True)
class Family:
    """The cells of one search; ``base`` has every field but the searched one and the size of the training set."""

    what: What
    base: Cell
    largest: int

    @property
    def grid(self) -> Sequence[int]:
        """The values that may be tried, increasing; sequences start at 512, below which Unsloth does not offload."""
        if self.what == "r":
            return [value for value in (1, 2, 4) if value <= self.largest] + list(range(8, self.largest + 1, 8))
        return range(512 if self.what == "max_length" else 1, self.largest + 1, STEP[self.what])

    def at(self, value: int) -> Cell:
        """The cell of that value, with a training set that fills its rows."""
        content = self.base.model_dump() | {self.what: value}
        tokens = content["max_length"] * content["batch_size"] * content["max_steps"]
        size = SMALLEST_SET
        while size * TOKENS_PER_EXAMPLE < tokens:
            size *= 2
        return Cell.model_validate(content | {"train_examples": size})

    @property
    def settings(self) -> dict[str, str]:
        """What the side's settings are, in words of the cell's fields."""
        names = ("gradient_checkpointing", "attention", "optimizer", "packing", "gradient_accumulation_steps")
        fixed = [name for name in ("max_length", "batch_size", "r") if name != self.what]
        return {name: str(getattr(self.base, name)) for name in (*names, *fixed)}


def family(what: What, *, backend: str, model: str, budget_bytes: int, **fields: Any) -> Family:
    """The family for a backend with its documented settings; ``fields`` of the cell override them, None does not.

    Raises InputError for an unknown backend or model, for values that a cell refuses, and for the searched one given.
    """
    from bench import backends
    from bench.models.catalogue import hidden_size
    from bench.models.sources import config_for

    backends.get(backend)
    given = {name: value for name, value in fields.items() if value is not None}
    if what in given:
        raise InputError(f"{what} {given[what]}", f"{what} is what is searched for", "leave it out")
    content = COMMON | SIDES.get(backend, BASELINE) | given
    try:
        base = Cell.model_validate(content | {"model": model, "backend": backend, "vram_budget_bytes": budget_bytes})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            ".".join(map(str, first["loc"])) or "cell", first["msg"], "see `peftmark limit --help`"
        ) from error
    config = None if backend == "fake" else config_for(base)
    largest = LARGEST[what] if what != "r" else hidden_size(config) if config else 8192
    return Family(what, base, largest)
