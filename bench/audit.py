"""What really ran, read back from the loaded model and trainer: never from the request.

``effective`` reads; ``check`` lays the readings beside what was asked for. A reading that was asked for and differs
fails the cell (``crashed: audit``) before any number is taken.
"""

from collections import Counter
from typing import Any

from bench.cell import Cell
from bench.errors import AuditError
from bench.record import AuditEntry

QUANTISED = {"Linear4bit": "nf4", "Linear8bitLt": "int8"}


def requested(cell: Cell) -> dict[str, str]:
    """What every backend owes the cell, by the names that ``effective`` uses."""
    wanted: dict[str, str] = {"base_precision": cell.precision}
    if cell.attention != "auto":
        wanted["attention"] = cell.attention
    if cell.padding_free != "auto":
        wanted["padding_free"] = str(cell.padding_free == "on")
    wanted["adapter"] = {"full": "none", "dora": "dora"}.get(cell.method, "lora")
    if cell.method != "full":
        wanted["lora_rank"] = str(cell.r)
        wanted["lora_scaling"] = _number(cell.alpha / (cell.r or 1) ** (0.5 if cell.method == "rslora" else 1.0))
    return wanted


def effective(model: Any, optimizer: Any = None) -> dict[str, str]:
    """Readings of a loaded model (and its optimizer, once there is one), as text."""
    parameters = list(model.named_parameters())
    adapter = [p for name, p in parameters if "lora_" in name]
    readings = {
        "base_precision": _base_precision(model),
        "quantised_modules": _counts(_quantised_kind(m) for m in model.modules()),
        "base_dtypes": _counts(str(p.dtype) for n, p in parameters if "lora_" not in n and not _is_packed(p)),
        "adapter": _adapter_kind(model),
        "adapter_dtypes": _counts(str(p.dtype) for p in adapter),
        "parameters_trainable": str(sum(p.numel() for _, p in parameters if p.requires_grad)),
        "attention": str(getattr(model.config, "_attn_implementation", "unknown")),
        "gradient_checkpointing": _checkpointing(model),
        "implementation": "unsloth" if _runs_unsloth(model) else "stock",
        "fused_lora_modules": str(_fused_lora(model)),
        "embedding": _dtype_and_device(model.get_input_embeddings()),
        "lm_head": _dtype_and_device(model.get_output_embeddings()),
    }
    if adapter:
        layers = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")]
        readings["lora_rank"] = ", ".join(str(r) for r in sorted({r for m in layers for r in m.r.values()}))
        scalings = sorted({s for m in layers for s in m.scaling.values()})
        readings["lora_scaling"] = ", ".join(_number(s) for s in scalings)
    if optimizer is not None:
        inner = getattr(optimizer, "optimizer", optimizer)
        readings["optimizer"] = f"{type(inner).__module__}.{type(inner).__name__}"
        readings["optimizer_state_dtypes"] = _counts(
            str(v.dtype) for s in inner.state.values() for v in s.values() if hasattr(v, "dtype") and v.numel() > 1
        )
    return readings


def check(wanted: dict[str, str], found: dict[str, str]) -> list[AuditEntry]:
    """One entry per reading, in order, with what was asked of it; then what was asked for and could not be read."""
    unread = {k: None for k in wanted if k not in found}
    return [
        AuditEntry(name=k, requested=wanted.get(k), effective=v, ok=k not in wanted or wanted[k] == v)
        for k, v in (found | unread).items()
    ]


def fail_on_mismatch(entries: list[AuditEntry]) -> None:
    """Raise AuditError naming every property that is not what was asked for."""
    wrong = [f"{e.name}: asked for {e.requested}, got {e.effective}" for e in entries if not e.ok]
    if wrong:
        raise AuditError("audit: " + "; ".join(wrong))


def _quantised_kind(module: Any) -> str | None:
    if hasattr(module, "base_layer"):  # PEFT's wrapper has the class name of what it wraps
        return None
    for cls in type(module).__mro__:
        if cls.__name__ in QUANTISED:
            return cls.__name__
    return None


def _base_precision(model: Any) -> str:
    """The precision of the linear layers in the blocks, by majority of parameters."""
    import torch

    sizes: Counter[str] = Counter()
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    heads = {id(m) for m in (model.get_output_embeddings(), model.get_input_embeddings())}
    for name, module in model.named_modules():
        if id(module) in heads or "lora_" in name:
            continue
        kind = _quantised_kind(module)
        if kind:
            sizes[QUANTISED[kind]] += module.in_features * module.out_features
        elif isinstance(module, torch.nn.Linear):
            sizes[names.get(module.weight.dtype, str(module.weight.dtype))] += module.weight.numel()
    return sizes.most_common(1)[0][0] if sizes else "unknown"


def _adapter_kind(model: Any) -> str:
    """none, lora, or dora: a LoRA layer with PEFT's magnitude vector."""
    layers = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")]
    magnitudes = [m for m in layers if len(getattr(m, "lora_magnitude_vector", ()))]
    return "dora" if magnitudes else "lora" if layers else "none"


def _is_packed(parameter: Any) -> bool:
    return type(parameter).__name__ in ("Params4bit", "Int8Params")


def _checkpointing(model: Any) -> str:
    """off, on, or unsloth: from the function that the checkpointed layers will call."""
    if not model.training and not any(getattr(m, "gradient_checkpointing", False) is True for m in model.modules()):
        return "off"
    functions = [
        getattr(m, "_gradient_checkpointing_func", None)
        for m in model.modules()
        if m.__dict__.get("gradient_checkpointing", getattr(type(m), "gradient_checkpointing", False)) is True
    ]
    if not functions:
        return "off"
    names = {getattr(getattr(f, "func", f), "__name__", "") for f in functions if f is not None}
    return "unsloth" if any("unsloth" in n.lower() for n in names) else "on"


def _runs_unsloth(model: Any) -> bool:
    """Whether Unsloth's own code forwards the model, from its model files or its compiled ones; imported is not enough.

    Its fallback for machines without a GPU leaves stock classes behind (``unsloth._cpu_init``): that is not Unsloth.
    """
    homes = {getattr(type(m).forward, "__module__", None) or "" for m in model.modules()}
    return any(home.startswith("unsloth.models.") or "unsloth_compiled" in home for home in homes)


def _fused_lora(model: Any) -> int:
    """Attention and MLP projections whose forward is one of Unsloth's fused ``apply_lora_*`` functions."""
    count = 0
    for module in model.modules():
        bound = [module.__dict__.get(n) for n in ("apply_qkv", "apply_o", "forward", "_unsloth_forward")]
        for function in bound:
            inner = getattr(function, "__func__", function)
            count += getattr(getattr(inner, "func", inner), "__name__", "").startswith("apply_lora")
    return count


def _dtype_and_device(module: Any) -> str:
    weight = getattr(module, "weight", None)
    return "none" if weight is None else f"{weight.dtype} on {weight.device.type}"


def _counts(values: Any) -> str:
    counted = Counter(v.removeprefix("torch.") for v in values if v is not None)
    return ", ".join(f"{n} {v}" for v, n in sorted(counted.items())) or "none"


def _number(value: float) -> str:
    return f"{value:.6g}"
