"""One training as the memory and speed models see it, and the cells they know."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from bench.backends.hf_peft import QUANTISED
from bench.backends.unsloth import OFFLOAD_FROM_TOKENS
from bench.cell import Cell
from bench.errors import InputError

Kind = Literal["off", "on", "offload"]
BACKENDS = ("hf-peft", "hf-peft-no-upcast", "unsloth")


@dataclass(frozen=True)
class Setup:
    """One training as the memory model sees it."""

    backend: str
    precision: str
    r: int
    batch: int
    sequence: int
    kind: Kind
    """Gradient checkpointing as it runs."""
    eager: bool = False
    optimizer: str = "adamw_8bit"
    accumulation: int = 4
    labelled: float = 1.0
    """Share of the tokens that the loss is taken over; 1 is the upper bound."""
    target_modules: tuple[str, ...] | str = "all-linear"

    @property
    def tokens(self) -> int:
        return self.batch * self.sequence

    @property
    def unsloth(self) -> bool:
        return self.backend == "unsloth"

    @property
    def upcast(self) -> bool:
        """PEFT's preparation casts what is not quantised to float32."""
        return self.backend == "hf-peft" and self.precision in QUANTISED

    @property
    def adapter_bytes(self) -> int:
        """TRL makes the adapter of a quantised model bfloat16; Unsloth keeps float32 (the records' audit)."""
        return 2 if not self.unsloth and self.precision in QUANTISED else 4

    def but(self, **changes: object) -> Self:
        return replace(self, **changes)  # type: ignore[arg-type]


def not_modelled(cell: Cell) -> str | None:
    """Why the models do not know a cell; None where they do."""
    if cell.backend not in BACKENDS:
        return f"backend {cell.backend} is not modelled"
    if cell.method not in ("lora", "rslora"):
        return f"method {cell.method} is not modelled"
    if cell.packing == "bfd":
        return "packing bfd, whose steps differ in length, is not modelled"
    return "float32 base weights are not modelled" if cell.precision == "fp32" else None


def setup_of(cell: Cell, *, sequence: int | None = None, labelled: float = 1.0) -> Setup:
    """The setup of a cell; ``sequence`` where rows are shorter than ``max_length``.

    InputError for what the model does not cover: other backends, DoRA and full fine-tuning.
    """
    if why := not_modelled(cell):
        raise InputError("memory model", why, f"it knows backends {', '.join(BACKENDS)} and method lora or rslora")
    kind: Kind = "off" if cell.gradient_checkpointing == "off" else "on"
    offloads = cell.gradient_checkpointing in ("auto", "unsloth") and cell.max_length >= OFFLOAD_FROM_TOKENS
    if cell.backend == "unsloth" and offloads and cell.precision != "int8":
        kind = "offload"  # int8 takes another path, whose peak is higher by all checkpoints (one H100 record)
    return Setup(
        backend=cell.backend, precision=cell.precision, r=cell.r or 0, batch=cell.batch_size,
        sequence=sequence or cell.max_length, kind=kind, eager=cell.attention == "eager", optimizer=cell.optimizer,
        accumulation=cell.gradient_accumulation_steps, labelled=labelled, target_modules=cell.target_modules,
    )  # fmt: skip
