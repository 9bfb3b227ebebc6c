"""The process of level static: imports the package once, and reads the signatures that the harness calls.

``python -m bench.regress.levels.static_child OUT PACKAGE``. Without a GPU, Unsloth is imported as the whole-model check
imports it: with Triton's interpreter, and with answers to what it asks about a GPU.
"""

import importlib
import inspect
import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import environment

CALLED: dict[str, dict[str, tuple[str, ...]]] = {
    "unsloth": {
        "FastLanguageModel.from_pretrained": (
            "model_name", "max_seq_length", "dtype", "load_in_4bit", "load_in_8bit", "full_finetuning", "device_map",
            "use_gradient_checkpointing", "fix_tokenizer", "trust_remote_code",
        ),
        "FastLanguageModel.get_peft_model": (
            "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_gradient_checkpointing", "random_state",
            "use_rslora",
        ),
        "FastLanguageModel.for_inference": (),
        "FastLanguageModel.for_training": ("use_gradient_checkpointing",),
    },
    "peft": {"LoraConfig": ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")},
    "trl": {"SFTTrainer": ("model", "args", "train_dataset"), "SFTConfig": ("max_length", "packing", "padding_free")},
    "transformers": {"TrainingArguments": ("per_device_train_batch_size", "gradient_accumulation_steps", "optim")},
}  # fmt: skip
"""By package: what bench.backends calls, with the keywords that it passes."""


def main(arguments: list[str]) -> None:
    """Import and look; an exception is written down as the reason."""
    out, package = arguments
    try:
        said: dict[str, object] = {"import_s": _import(package), "signatures": _signatures(package)}
    except BaseException as error:
        said = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    Path(out).write_text(json.dumps(said), encoding="utf-8")


def _import(package: str) -> float:
    """Seconds of importing the package; torch is imported before, where the package stands on it."""
    if package == "unsloth" or any(text.startswith("torch") for text in metadata.requires(package) or []):
        importlib.import_module("torch")
    if package == "unsloth" and not environment.current().gpus:
        from kernels_check import interpreter
        from kernels_check.whole_model_gpu import stand_in_for_a_gpu

        interpreter.prepare_environment()
        stand_in_for_a_gpu()
        interpreter.mend()
    start = time.monotonic()
    importlib.import_module(package)
    return time.monotonic() - start


def _signatures(package: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for path, passed in CALLED.get(package, {}).items():
        name = f"static/signatures/{path}"
        value: Any = sys.modules[package]
        try:
            for part in path.split("."):
                value = getattr(value, part)
            parameters = inspect.signature(value).parameters
        except (AttributeError, ValueError, TypeError) as error:
            found.append({"name": name, "state": "bad", "text": f"{error}"})
            continue
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        refused = [] if takes_any else [keyword for keyword in passed if keyword not in parameters]
        text = f"does not take {', '.join(refused)}" if refused else f"({', '.join(parameters)})"
        found.append({"name": name, "state": "bad" if refused else "good", "text": text})
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
