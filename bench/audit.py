"""What really ran, read back from the loaded model and trainer: never from the request.

``effective`` reads, after loading and again after the first step; ``Watch`` sees what a forward pass really does;
``check`` lays the readings beside what was asked for. A reading that was asked for and differs fails the cell
(``crashed: audit``).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.cell import Cell
from bench.errors import AuditError
from bench.record import AuditEntry

QUANTISED = {"Linear4bit": "nf4", "Linear8bitLt": "int8"}
AT_LOADING = "@loading"
"""Ends the name of a reading after loading that was another one after the first step."""


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
        wanted["lora_dropout"] = _number(cell.lora_dropout)
    return wanted


def targets(model: Any, names: list[str]) -> str:
    """The ``target_modules`` reading that an adapter on ``names`` owes: modules of the bare model with such names."""
    paths = [path for path, _ in model.named_modules() if any(f".{path}".endswith(f".{name}") for name in names)]
    return _counts(path.rsplit(".", 1)[-1] for path in paths)


def requested_dispatch(wanted: dict[str, str], found: dict[str, str]) -> dict[str, str]:
    """What the profiled pass owes to ``wanted``, of the readings it gave: a profiler that cannot tell is no fault."""
    owed = {}
    if "attention" in wanted:
        owed["attention_dispatched"] = wanted["attention"]
    if "gradient_checkpointing" in wanted:
        owed["forwards_per_layer"] = "1" if wanted["gradient_checkpointing"] == "off" else "2"
    return {name: value for name, value in owed.items() if name in found}


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
        "parameters_total": str(parameters_total(model)),
        "attention": _attention(model),
        "gradient_checkpointing": _checkpointing(model),
        "implementation": "unsloth" if _runs_unsloth(model) else "stock",
        "fused_lora_modules": str(_fused_lora(model)),
        "embedding": _dtype_and_device(model.get_input_embeddings()),
        "lm_head": _dtype_and_device(model.get_output_embeddings()),
    }
    if adapter:
        readings |= _lora(model)
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


def merge(before: list[AuditEntry], after: list[AuditEntry]) -> list[AuditEntry]:
    """Every reading at its latest value; then, with AT_LOADING to its name, the earlier one of each that changed."""
    earlier, later = {e.name: e for e in before}, {e.name: e for e in after}
    changed = [e for n, e in earlier.items() if n in later and later[n].effective != e.effective]
    renamed = [e.model_copy(update={"name": e.name + AT_LOADING}) for e in changed]
    return [*(earlier | later).values(), *renamed]


def fail_on_mismatch(entries: list[AuditEntry]) -> None:
    """Raise AuditError naming every property that is not what was asked for."""
    wrong = [f"{e.name}: asked for {e.requested}, got {e.effective}" for e in entries if not e.ok]
    if wrong:
        raise AuditError("audit: " + "; ".join(wrong))


class Watch:
    """Hooks for one forward and backward, to see what flags alone cannot show; ``readings`` has what was seen.

    ``autocast``: the dtype in force where the token embedding is called, or off. ``forwards_per_layer``: how often the
    first block's MLP ran: 2 where gradient checkpointing recomputes it in the backward, else 1. Compiled code passes
    the hooks by: no reading, and ``bench.fingerprint`` tells it by the attention operators.
    """

    def __init__(self) -> None:
        self._autocast: str | None = None
        self._forwards = 0

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """Watch ``model`` inside the block."""
        mlp = next((m for name, m in model.named_modules() if name.endswith(".0.mlp")), None)
        handles = [model.get_input_embeddings().register_forward_pre_hook(self._see_autocast)]
        if mlp is not None:
            handles.append(mlp.register_forward_pre_hook(self._count))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def readings(self) -> dict[str, str]:
        """What was seen, by the audit's names."""
        seen = {} if self._autocast is None else {"autocast": self._autocast}
        return seen | ({"forwards_per_layer": str(self._forwards)} if self._forwards else {})

    def _see_autocast(self, module: Any, args: tuple[Any, ...]) -> None:
        import torch

        if torch.compiler.is_compiling():
            return
        kind = args[0].device.type if args else "cpu"
        on = torch.is_autocast_enabled(kind)
        self._autocast = str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if on else "off"

    def _count(self, module: Any, args: tuple[Any, ...]) -> None:
        import torch

        if not torch.compiler.is_compiling():
            self._forwards += 1


def parameters_total(model: Any) -> int:
    """Parameters, those of packed 4-bit weights at their true number."""

    # A 4-bit weight packs two values into one byte-sized element: quant_state keeps the true shape.
    def size(p: Any) -> int:
        state = getattr(p, "quant_state", None)
        return int(state.shape.numel()) if state is not None else p.numel()

    return sum(size(p) for p in model.parameters())


def _lora_layers(model: Any) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")}


def _lora(model: Any) -> dict[str, str]:
    """Readings of the adapter's layers; ``lora_anomalies`` only where there are some."""
    layers = _lora_layers(model)
    readings = {
        "lora_rank": _each(r for m in layers.values() for r in m.r.values()),
        "lora_scaling": _each(s for m in layers.values() for s in m.scaling.values()),
        "lora_dropout": _each(getattr(d, "p", 0.0) for m in layers.values() for d in m.lora_dropout.values()),
        "target_modules": _counts(name.rsplit(".", 1)[-1] for name in layers),
    }
    odd = {
        "bias": lambda m: any(getattr(b, "bias", None) is not None for b in m.lora_B.values()),
        "fan_in_fan_out": lambda m: getattr(m, "fan_in_fan_out", False),
        "merged": lambda m: getattr(m, "merged", False),
        "disabled": lambda m: getattr(m, "disable_adapters", False),
        "several adapters": lambda m: len(m.r) > 1,
    }
    anomalies = _counts(name for name, test in odd.items() for m in layers.values() if test(m))
    return readings if anomalies == "none" else readings | {"lora_anomalies": anomalies}


def _attention(model: Any) -> str:
    """The implementation that the attention modules look up at every forward; the model's own where none has one."""
    modules = [m for m in model.modules() if "Attention" in type(m).__name__ and hasattr(m, "config")]
    found = {str(getattr(m.config, "_attn_implementation", None)) for m in modules}
    return ", ".join(sorted(found)) or str(getattr(model.config, "_attn_implementation", "unknown"))


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
    layers = _lora_layers(model)
    magnitudes = [m for m in layers.values() if len(getattr(m, "lora_magnitude_vector", ()))]
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


def _each(values: Any) -> str:
    """The distinct numbers, in order."""
    return ", ".join(_number(v) for v in sorted(set(values)))


def _number(value: float) -> str:
    return f"{value:.6g}"
