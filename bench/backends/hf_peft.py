"""Plain Hugging Face: transformers + PEFT, as their documentation says to do it.

Sources: PEFT's quantization guide (``prepare_model_for_kbit_training`` before ``get_peft_model``; it casts norms,
embeddings and head to float32), the QLoRA paper (NF4, double quantisation, bf16 compute), TRL's SFTTrainer guide.
"""

from pathlib import Path
from typing import Any

from bench import training
from bench.backends.base import WorkerJob, torch_unsupported
from bench.cell import Cell
from bench.environment import Environment
from bench.events import Journal

QUANTISED = ("int8", "nf4")


class HfPeft:
    """The baseline."""

    def unsupported(self, cell: Cell, machine: Environment) -> str | None:
        """See ``Backend``."""
        if cell.gradient_checkpointing == "unsloth":
            return "gradient checkpointing 'unsloth' exists in the unsloth backend only"
        if not machine.gpus and cell.method == "dora" and cell.precision == "int8":
            return "DoRA over int8 weights needs an NVIDIA GPU: on a CPU, PEFT loses the weights' scales"
        return torch_unsupported(cell, machine)

    def run(self, job: WorkerJob, journal: Journal) -> None:
        """See ``Backend``."""
        training.run(self, job, journal)

    def imports(self) -> None:
        """See ``TorchBackend``."""
        import peft  # noqa: F401
        import transformers  # noqa: F401
        import trl  # noqa: F401

    def load(self, cell: Cell, folder: Path) -> Any:
        """See ``TorchBackend``."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=training.compute_dtype(cell),
            quantization_config=_quantization(cell),
            device_map={"": training.device()},
            use_safetensors=True,
            trust_remote_code=cell.trust_remote_code,
            **({} if cell.attention == "auto" else {"attn_implementation": cell.attention}),
        )
        return self.prepare(cell, model) if cell.precision in QUANTISED else model

    def prepare(self, cell: Cell, model: Any) -> Any:
        """Ready a quantised model for an adapter: freeze it, cast what is not quantised to float32, checkpoint it."""
        from peft import prepare_model_for_kbit_training

        return prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=checkpointing(cell),
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )

    def add_adapter(self, cell: Cell, model: Any) -> Any:
        """See ``TorchBackend``."""
        if cell.method == "full":
            return model
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=cell.r,
            lora_alpha=cell.alpha,
            lora_dropout=cell.lora_dropout,
            target_modules=training.target_modules(cell, model),
            use_rslora=cell.method == "rslora",
            use_dora=cell.method == "dora",
            bias="none",
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)

    def trainer_arguments(self, cell: Cell) -> dict[str, Any]:
        """See ``TorchBackend``."""
        on = checkpointing(cell)
        return {
            "gradient_checkpointing": on,
            "gradient_checkpointing_kwargs": {"use_reentrant": False} if on else None,
        }

    def for_inference(self, model: Any) -> None:
        """See ``TorchBackend``."""
        model.eval()

    def for_training(self, model: Any, cell: Cell) -> None:
        """See ``TorchBackend``."""
        model.train()

    def requested(self, cell: Cell) -> dict[str, str]:
        """See ``TorchBackend``."""
        return {"gradient_checkpointing": "on" if checkpointing(cell) else "off", "implementation": "stock"}

    def readings(self, trainer: Any) -> dict[str, str]:
        """See ``TorchBackend``."""
        return {}


def checkpointing(cell: Cell) -> bool:
    """TRL's and PEFT's documented default is on."""
    return cell.gradient_checkpointing in ("auto", "on")


def _quantization(cell: Cell) -> Any:
    from transformers import BitsAndBytesConfig

    if cell.precision == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=training.compute_dtype(cell),
        )
    return BitsAndBytesConfig(load_in_8bit=True) if cell.precision == "int8" else None
