"""The shared run on a tiny random Llama, in this process: what the worker and the parent do between them, for tests."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench import assemble, events
from bench.backends.base import WorkerJob
from bench.backends.hf_peft import HfPeft
from bench.cell import Cell
from bench.errors import PeftmarkError
from bench.record import Record
from bench.worker import classify
from tests.synthetic import environment

LAYERS, HIDDEN, INTERMEDIATE, KEY_VALUE = 2, 32, 64, 16
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 320, "head_dim": 8, "initializer_range": 0.05, "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}  # fmt: skip
LINEAR_SHAPES = [
    (HIDDEN, HIDDEN), (HIDDEN, KEY_VALUE), (HIDDEN, KEY_VALUE), (HIDDEN, HIDDEN),
    (HIDDEN, INTERMEDIATE), (HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN),
]  # fmt: skip
"""(inputs, outputs) of the seven linear layers of a block."""


def on_cpu(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Use the trial's own cache, and its processor even where there is a GPU."""
    import torch

    patch.setenv("PEFTMARK_CACHE", str(root / "cache"))
    patch.setattr(torch.cuda, "is_available", lambda: False)


@dataclass(frozen=True)
class Run:
    """One finished run: its record, its folder, and the error that ended it."""

    record: Record
    folder: Path
    error: PeftmarkError | None

    def reading(self, name: str) -> str | None:
        """What the audit read back under that name."""
        return next((entry.effective for entry in self.record.audit if entry.name == name), None)


@dataclass(frozen=True)
class Trial:
    """A folder with a model's configuration, a task file and a cache, and runs in it."""

    root: Path

    @classmethod
    def create(cls, root: Path) -> "Trial":
        """Write the inputs; the weights are drawn at the first run of each seed."""
        (root / "tiny").mkdir()
        (root / "tiny" / "config.json").write_text(json.dumps(LLAMA))
        lines = [{"question": f"Repeat the word{' and again' * (n % 5)} {n}.", "answer": "seven"} for n in range(40)]
        (root / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return cls(root)

    def cell(self, **fields: Any) -> Cell:
        """Two steps of two short rows of different length, the first step untimed, in float32."""
        return Cell.model_validate({
            "model": str(self.root / "tiny"), "source": "random", "task": "custom",
            "custom_task": {"path": "task.jsonl"}, "precision": "fp32", "r": 4, "max_length": 192, "batch_size": 2,
            "gradient_accumulation_steps": 1, "max_steps": 2, "untimed_steps": 1, "warmup_steps": 0, **fields,
        })  # fmt: skip

    def run(self, cell: Cell, backend: Any = None) -> Run:
        """Run the cell with ``backend`` (default: hf-peft itself); errors that peftmark means end up in the Run."""
        import torch
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # else the first run's mixed precision stays
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # so small a model spends its time waking threads otherwise
        folder = Path(tempfile.mkdtemp(dir=self.root))
        journal = events.Journal(folder / assemble.JOURNAL, started=time.monotonic())
        error: PeftmarkError | None = None
        with pytest.MonkeyPatch.context() as patch:
            on_cpu(patch, self.root)
            try:
                (backend or HfPeft()).run(WorkerJob(cell=cell, folder=folder, base=self.root), journal)
                journal.write("done")
            except PeftmarkError as raised:
                error = raised
                journal.write("failed", status=classify(raised), message=str(raised))
            finally:
                torch.set_num_threads(threads)
        record = assemble.record(
            id="trial", suite="trial", cell=cell, repeat=0, environment=environment(gpu=None),
            started_at="2026-01-01T00:00:00Z", folder=folder,
        )  # fmt: skip
        return Run(record, folder, error)


class Altered(HfPeft):
    """hf-peft with some of its methods replaced: a library that quietly does something else."""

    def __init__(self, **methods: Callable[..., Any]) -> None:
        for name, method in methods.items():
            assert hasattr(HfPeft, name), name
            setattr(self, name, method)


def adapted_by(change: Callable[[Any], None]) -> HfPeft:
    """hf-peft with ``change`` done to the adapted model: a fault that the audit's flags do not show."""

    def add_adapter(cell: Cell, model: Any) -> Any:
        adapted = HfPeft().add_adapter(cell, model)
        change(adapted)
        return adapted

    return Altered(add_adapter=add_adapter)


class Unchecked(HfPeft):
    """A second torch backend: the same libraries, other code around them (no gradient checkpointing)."""

    def trainer_arguments(self, cell: Cell) -> dict[str, Any]:
        """See ``TorchBackend``."""
        return {"gradient_checkpointing": False}

    def requested(self, cell: Cell) -> dict[str, str]:
        """See ``TorchBackend``."""
        return {"gradient_checkpointing": "off", "implementation": "stock"}
