"""Unsloth, as its notebooks use it: FastLanguageModel.from_pretrained, get_peft_model, TRL's SFTTrainer as patched.

Unsloth must be imported before transformers, trl and peft, and needs its own process: it rewrites their classes in
place. Without a GPU it would fall back to stock transformers + PEFT, which ``UNSLOTH_DISABLE_CPU_FALLBACK`` forbids.
"""

import os
from pathlib import Path
from typing import Any

from bench import training
from bench.backends.base import WorkerJob, torch_unsupported
from bench.cache import cache_dir
from bench.cell import Cell
from bench.environment import Environment
from bench.events import Journal

OFFLOAD_FROM_TOKENS = 512
"""Shortest ``max_length`` at which its 'unsloth' checkpointing offloads (``apply_unsloth_gradient_checkpointing``)."""


class Unsloth:
    """The candidate."""

    def unsupported(self, cell: Cell, machine: Environment) -> str | None:
        """See ``Backend``."""
        if not machine.gpus:
            return "needs an NVIDIA GPU"
        if "unsloth" not in machine.packages:
            return "unsloth is not installed: pip install 'peftmark[gpu]'"
        if cell.method == "dora":
            return "Unsloth has no fused DoRA: its get_peft_model would run PEFT's own, which is not the claim"
        if cell.gradient_checkpointing == "unsloth" and cell.max_length < OFFLOAD_FROM_TOKENS:
            return (
                f"below {OFFLOAD_FROM_TOKENS} tokens Unsloth replaces its checkpointing by the plain kind; ask for 'on'"
            )
        if cell.attention == "eager":
            return "Unsloth replaces attention and has no eager path to ask for"
        return torch_unsupported(cell, machine)

    def run(self, job: WorkerJob, journal: Journal) -> None:
        """See ``Backend``."""
        training.run(self, job, journal)

    def imports(self) -> None:
        """See ``TorchBackend``."""
        os.environ.setdefault("UNSLOTH_DISABLE_CPU_FALLBACK", "1")
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_dir() / "unsloth_compiled"))
        import unsloth  # noqa: F401
        import trl  # noqa: F401  # isort: skip

    def load(self, cell: Cell, folder: Path) -> Any:
        """See ``TorchBackend``."""
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(folder),
            max_seq_length=cell.max_length,
            dtype=training.compute_dtype(cell),
            load_in_4bit=cell.precision == "nf4",
            load_in_8bit=cell.precision == "int8",
            full_finetuning=cell.method == "full",
            use_gradient_checkpointing=_checkpointing(cell),
            trust_remote_code=cell.trust_remote_code,
            random_state=cell.seed,
            **({} if cell.attention == "auto" else {"attn_implementation": cell.attention}),
        )
        return model

    def add_adapter(self, cell: Cell, model: Any) -> Any:
        """See ``TorchBackend``."""
        if cell.method == "full":
            return model
        from unsloth import FastLanguageModel

        return FastLanguageModel.get_peft_model(
            model,
            r=cell.r,
            lora_alpha=cell.alpha,
            lora_dropout=cell.lora_dropout,
            target_modules=training.target_modules(cell, model),
            use_rslora=cell.method == "rslora",
            use_gradient_checkpointing=_checkpointing(cell),
            random_state=cell.seed,
            bias="none",
        )

    def trainer_arguments(self, cell: Cell) -> dict[str, Any]:
        """See ``TorchBackend``. The notebooks leave gradient checkpointing to the model, so only 'off' is said here."""
        return {"gradient_checkpointing": False} if _checkpointing(cell) is False else {}

    def for_inference(self, model: Any) -> None:
        """See ``TorchBackend``."""
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(model)

    def for_training(self, model: Any, cell: Cell) -> None:
        """See ``TorchBackend``."""
        from unsloth import FastLanguageModel

        FastLanguageModel.for_training(model, use_gradient_checkpointing=_checkpointing(cell))

    def requested(self, cell: Cell) -> dict[str, str]:
        """See ``TorchBackend``."""
        mode = {"unsloth": "unsloth", True: "on", False: "off"}[_checkpointing(cell)]
        if mode == "unsloth" and cell.max_length < OFFLOAD_FROM_TOKENS:
            mode = "on"
        return {"gradient_checkpointing": mode, "implementation": "unsloth"}

    def readings(self, trainer: Any) -> dict[str, str]:
        """See ``TorchBackend``."""
        return {}


def _checkpointing(cell: Cell) -> str | bool:
    """The notebooks' documented setting is 'unsloth', the offloading kind."""
    modes: dict[str, str | bool] = {"auto": "unsloth", "unsloth": "unsloth", "on": True, "off": False}
    return modes[cell.gradient_checkpointing]
