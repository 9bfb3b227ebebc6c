"""Bytes of the saved adapter by rank, beside the formula: sum over the adapted layers of r (in + out) values.

The formula is checked against saved files of one model and then given for larger ones, whose adapters are not made:
their layers are read from a model on torch's meta device.
"""

import tempfile
from pathlib import Path
from typing import Any

from bench.claims.experiments import parts


def measure(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``saved``: one entry a rank; ``formula``: the same of the larger models; bytes of the base weights beside."""
    model, source = parts.base_model(settings)
    values_per_rank = _values_per_rank(model)
    saved = []
    for r in settings["ranks"]:
        adapted = parts.with_adapter(model, r, seed=None)
        with tempfile.TemporaryDirectory() as scratch:
            adapted.save_pretrained(scratch)
            sizes = parts.safetensors_bytes(Path(scratch))
        itemsize = next(p for n, p in adapted.named_parameters() if "lora_A" in n).element_size()
        saved.append({"r": r, **sizes, "formula_bytes": r * values_per_rank * itemsize, "value_bytes": itemsize})
        model = adapted.unload()
    base = parts.safetensors_bytes(source)
    return {
        "device": parts.device_name(), "saved": saved, "model_file_bytes": base["file_bytes"],
        "formula": [_formula(name, settings["ranks"]) for name in settings["formula_models"]],
    }  # fmt: skip


def _values_per_rank(model: Any) -> int:
    from bench.cell import Cell
    from bench.training import target_modules

    names = set(target_modules(Cell(model="any"), model))
    return sum(m.in_features + m.out_features for n, m in model.named_modules() if n.rsplit(".", 1)[-1] in names)


def _formula(name: str, ranks: list[int]) -> dict[str, Any]:
    """Adapter bytes (bf16 and float32 values) of a catalogue model, and the bytes of its weights in bf16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from bench.models.catalogue import entry

    config = entry(name).config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    per_rank = _values_per_rank(model)
    return {
        "model": name, "model_bytes": 2 * entry(name).published_parameters,
        "adapters": [{"r": r, "bf16_bytes": 2 * r * per_rank, "fp32_bytes": 4 * r * per_rank} for r in ranks],
    }  # fmt: skip
