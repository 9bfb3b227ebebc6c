"""The seam: what a backend is to the harness.

A backend says beforehand what it cannot do and runs one job in the worker. Those on torch share one run
(``bench.training``) and differ in how a model is loaded and given its adapter; none of them times anything.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.cell import Cell
from bench.environment import Environment
from bench.events import Journal


@dataclass(frozen=True)
class WorkerJob:
    """What a worker process is told: the cell, where to write, and where a suite's relative paths start."""

    cell: Cell
    folder: Path
    base: Path


class Backend(Protocol):
    """One way of running a cell."""

    def unsupported(self, cell: Cell, machine: Environment) -> str | None:
        """Why this cell cannot run on this machine, as far as can be known without loading anything."""

    def run(self, job: WorkerJob, journal: Journal) -> None:
        """Run the cell in this process, writing phases, steps and facts to the journal.

        Raises ``Unsupported``, ``AuditError``, ``Diverged``, or whatever the library raises.
        """


class TorchBackend(Backend, Protocol):
    """A backend that trains through the shared run in ``bench.training``."""

    def imports(self) -> None:
        """Import the libraries, in the order they need; the first heavy import of the process."""

    def load(self, cell: Cell, folder: Path) -> Any:
        """Load the base model from a folder in the cell's precision, ready for an adapter."""

    def add_adapter(self, cell: Cell, model: Any) -> Any:
        """Give the model a fresh adapter (or make it fully trainable for method ``full``)."""

    def trainer_arguments(self, cell: Cell) -> dict[str, Any]:
        """Arguments of SFTConfig that are this backend's own (gradient checkpointing)."""

    def for_inference(self, model: Any) -> None:
        """Switch to generation."""

    def for_training(self, model: Any, cell: Cell) -> None:
        """Switch back to training."""

    def requested(self, cell: Cell) -> dict[str, str]:
        """What the audit must find, by the names of ``bench.audit.effective`` and of ``readings``."""

    def readings(self, trainer: Any) -> dict[str, str]:
        """What this backend alone can read back, after the first step, from the trainer."""


def torch_unsupported(cell: Cell, machine: Environment) -> str | None:
    """Limits shared by every backend on torch."""
    if cell.vram_budget_bytes is not None and machine.gpus and cell.vram_budget_bytes > machine.gpus[0].vram_bytes:
        asked, has = cell.vram_budget_bytes / 2**30, machine.gpus[0].vram_bytes / 2**30
        return f"vram_budget_bytes asks for {asked:.1f} GiB; the card has {has:.1f} GiB"
    if not machine.gpus:
        if cell.vram_budget_bytes is not None:
            return "a VRAM budget needs an NVIDIA GPU"
        if cell.precision == "fp16":
            return "fp16 training needs an NVIDIA GPU (torch has no fp16 gradient scaling for CPU matmuls)"
        if cell.optimizer == "adamw_8bit":
            return "8-bit AdamW needs an NVIDIA GPU"
        if cell.attention == "flash_attention_2":
            return "FlashAttention 2 needs an NVIDIA GPU"
    if cell.attention == "flash_attention_2" and "flash-attn" not in machine.packages:
        return "FlashAttention 2 is not installed: pip install flash-attn"
    if cell.precision in ("int8", "nf4") and "bitsandbytes" not in machine.packages:
        return f"{cell.precision} needs bitsandbytes: pip install bitsandbytes"
    if machine.gpus and cell.precision in ("bf16", "nf4", "int8"):
        gpu = machine.gpus[0]
        if float(gpu.compute_capability) < 8.0:
            return f"bf16 needs compute capability 8.0, {gpu.name} has {gpu.compute_capability}"
    return None
