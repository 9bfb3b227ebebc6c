"""Other public estimators on the cells of the calibration: GiB, or None where one is silent.

accelerate   ``accelerate estimate-memory``: weights alone, and "training using Adam" (full, for 16 and 32 bits)
table        Unsloth's documentation, fine-tuning requirements: absolute minimum by model size
studio       ``estimate_training_vram`` of Unsloth Studio, in the unsloth package
"""

import importlib.util
import math
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

from bench.advise.fit import Observation
from bench.advise.setup import Setup
from bench.advise.shapes import Shape
from bench.cell import digest_of

MINIMUM_GB = {
    3: (3.5, 8),
    7: (5, 19),
    8: (6, 22),
    9: (6.5, 24),
    14: (8.5, 33),
    27: (22, 64),
    32: (26, 76),
    70: (41, 164),
}
"""Billions of parameters: QLoRA and 16-bit LoRA, read as GiB. Source: unsloth.ai/docs, fine-tuning requirements."""
SAME_SIZE = 1.15
"""A row of the table speaks of a model whose size is within this factor."""
GIB = 2**30


def estimators() -> dict[str, Callable[[Observation, dict[str, Any]], float | None]]:
    """Name to a function of an observation and the model's configuration; those not installed are left out."""
    found: dict[str, Callable[[Observation, dict[str, Any]], float | None]] = {
        "accelerate, weights": lambda o, config: accelerate_gib(config, o.setup.precision, training=False),
        "accelerate, training with Adam": lambda o, config: accelerate_gib(config, o.setup.precision, training=True),
        "Unsloth's minimum-VRAM table": lambda o, config: table_gib(o.shape, o.setup),
    }
    if _studio() is not None:
        found["Unsloth Studio's formula"] = lambda o, config: studio_gib(config, o.setup)
    return found


def table_gib(shape: Shape, setup: Setup) -> float | None:
    """The row nearest in size, for Unsloth's cells of its two precisions."""
    billions = shape.parameters / 1e9
    row = min(MINIMUM_GB, key=lambda size: abs(math.log(size / billions)))
    if not setup.unsloth or setup.precision not in ("nf4", "bf16") or max(row / billions, billions / row) > SAME_SIZE:
        return None
    return MINIMUM_GB[row][setup.precision == "bf16"]


def accelerate_gib(config: dict[str, Any], precision: str, *, training: bool) -> float | None:
    """accelerate's own two functions, on a model without weights made from the configuration (its command asks the
    hub)."""
    from accelerate.commands.estimate import estimate_training_usage

    total = _float32_bytes(config)
    if training:
        if precision != "bf16":
            return None
        return max(estimate_training_usage(total, "bfloat16").values()) / GIB
    return total / {"bf16": 2, "int8": 4, "nf4": 8}.get(precision, 1) / GIB


def studio_gib(config: dict[str, Any], setup: Setup) -> float | None:
    """Studio's closed form, with its own names for what is asked."""
    studio = _studio()
    if studio is None or setup.precision == "int8":
        return None
    arch = studio.extract_arch_config(SimpleNamespace(**config))
    if arch is None:
        return None
    asked = studio.TrainingVramConfig(
        training_method="qlora" if setup.precision == "nf4" else "lora", batch_size=setup.batch,
        max_seq_length=setup.sequence, lora_rank=setup.r, load_in_4bit=setup.precision == "nf4",
        gradient_checkpointing={"off": "none", "on": "true", "offload": "unsloth"}[setup.kind],
        optimizer="adamw_8bit" if setup.optimizer == "adamw_8bit" else "adamw_torch_fused",
        attention_implementation="eager" if setup.eager else "sdpa",
    )  # fmt: skip
    return float(studio.estimate_training_vram(arch, asked).total / GIB)


_SIZES: dict[str, int] = {}


def _float32_bytes(config: dict[str, Any]) -> int:
    """Size of the model in float32, as accelerate counts it."""
    key = digest_of(config)
    if key not in _SIZES:
        import transformers
        from accelerate import init_empty_weights
        from accelerate.utils import calculate_maximum_sizes

        known = transformers.AutoConfig.for_model(
            **{k: v for k, v in config.items() if k not in ("torch_dtype", "dtype")}
        )
        with init_empty_weights():
            model = transformers.AutoModelForCausalLM.from_config(known)
        _SIZES[key] = int(calculate_maximum_sizes(model.float())[0])
    return _SIZES[key]


@cache
def _studio() -> ModuleType | None:
    """Studio's module alone, by its file: its package starts a server's imports."""
    found = importlib.util.find_spec("studio")
    for root in (found.submodule_search_locations or []) if found else []:
        path = f"{root}/backend/utils/hardware/vram_estimation.py"
        spec = importlib.util.spec_from_file_location("unsloth_studio_vram_estimation", path)
        if spec and spec.loader:
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            return module
    return None
