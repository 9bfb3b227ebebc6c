"""Projections with a low-rank update: QKV, O and the gated MLP, with a dense and with an NF4 base (see ``families``).

``eager`` is PEFT's own forward of the same module. The update's weights are bfloat16 and no autocast is on, so that
both do the same work.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import silu

from kernels_check import loading
from kernels_check.case import Inputs, Results
from kernels_check.families import nf4_weights
from kernels_check.families.fast_lora import FUNCTIONS, PLACES
from kernels_check.speed.operation import BOTH, FORWARD, ITEM, Implementation, Operation, Shape, normal, with_compile

APPLY = {"qkv": "apply_lora_qkv", "o": "apply_lora_o", "mlp": "apply_lora_mlp_swiglu"}
OUTPUTS = {"qkv": ("Q", "K", "V"), "o": ("Y",), "mlp": ("Y",)}


def operations(shape: Shape) -> list[Operation]:
    """Each block with both bases; torch.compile for the dense one."""
    return [_operation(shape, block, nf4) for nf4 in (False, True) for block in PLACES]


def sizes(shape: Shape, block: str) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each projection of a block."""
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    every = {
        "q": (shape.hidden, wide), "k": (shape.hidden, narrow), "v": (shape.hidden, narrow), "o": (wide, shape.hidden),
        "gate": (shape.hidden, shape.inter), "up": (shape.hidden, shape.inter), "down": (shape.inter, shape.hidden),
    }  # fmt: skip
    return {place: every[place] for place in PLACES[block]}


def _operation(shape: Shape, block: str, nf4: bool) -> Operation:
    unsloth = Implementation(
        call=partial(_unsloth, block=block), proof=partial(_proof, block=block),
        backward_overwrites=() if block == "o" else ("X",),
        kernels=(("_nf4_dequant_kernel",) if nf4 else ()) + (("_fg_kernel",) if block == "mlp" else ()),
        backward_kernels=("_DWf_DW_dfg_kernel",) if block == "mlp" else (),
    )  # fmt: skip
    candidates = {"unsloth": unsloth, "eager": Implementation(call=partial(_peft, block=block))}
    return Operation(
        family=f"lora_{block}_nf4" if nf4 else f"lora_{block}", shape=shape.name,
        dims={"rows": shape.rows, "hidden": shape.hidden, "inter": shape.inter, "heads": shape.heads,
              "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "rank": shape.rank},
        draw=partial(_draw, shape=shape, block=block, nf4=nf4),
        candidates=candidates if nf4 else with_compile(candidates, shape, everywhere=False),
        gradients=("X", *(f"{matrix}_{place}" for place in PLACES[block] for matrix in "AB")),
        traffic=_traffic(shape, block, nf4), flops=_flops(shape, block),
    )  # fmt: skip


def weight_bytes(inner: int, outer: int, nf4: bool) -> int:
    """Bytes of a projection's base: dense, or packed with doubly quantised scales (codebooks left out)."""
    elements = inner * outer
    if not nf4:
        return elements * ITEM
    blocks = -(-elements // nf4_weights.BLOCK)
    return -(-elements // 2) + blocks + 4 * -(-blocks // nf4_weights.BLOCK2)


def _traffic(shape: Shape, block: str, nf4: bool) -> dict[str, int]:
    """The forward reads X, the base and the update and writes Y; the backward reads dY and all three again and writes
    dX and the update's gradients."""
    places = sizes(shape, block)
    base = sum(weight_bytes(inner, outer, nf4) for inner, outer in places.values())
    update = sum(shape.rank * (inner + outer) for inner, outer in places.values()) * ITEM
    x = shape.rows * places[PLACES[block][0]][0] * ITEM
    out = sum(outer for _, outer in places.values()) if block == "qkv" else places[PLACES[block][-1]][1]
    y = shape.rows * out * ITEM
    forward = x + base + update + y
    return {FORWARD: forward, BOTH: forward + y + x + base + update + x + update}


def _flops(shape: Shape, block: str) -> dict[str, int]:
    """With m rows: X W^T and X A^T, (X A^T) B^T; backward dY W, dY B, (dY B) A, (dY B)^T X, dY^T (X A^T)."""
    places = sizes(shape, block).values()
    base = sum(2 * shape.rows * inner * outer for inner, outer in places)
    update = sum(2 * shape.rows * shape.rank * (inner + outer) for inner, outer in places)
    return {FORWARD: base + update, BOTH: 2 * base + 3 * update}


def _draw(generator: torch.Generator, *, shape: Shape, block: str, nf4: bool) -> Inputs:
    places = sizes(shape, block)
    module = _module(generator, places, shape.rank, nf4)
    inputs: Inputs = {"X": normal(generator, shape.batch, shape.length, places[PLACES[block][0]][0]), "module": module}
    for name, place in zip(OUTPUTS[block], PLACES[block] if block == "qkv" else PLACES[block][-1:], strict=True):
        inputs[f"d{name}"] = normal(generator, shape.batch, shape.length, places[place][1])
    for place in places:
        layer = getattr(module, f"{place}_proj")
        inputs |= {f"A_{place}": layer.lora_A["default"].weight, f"B_{place}": layer.lora_B["default"].weight}
    return inputs


def _module(
    generator: torch.Generator, places: dict[str, tuple[int, int]], rank: int, nf4: bool
) -> torch.nn.Module:  # fmt: skip
    """PEFT's layers on the generator's device. They are made without memory, then get their weights."""
    from peft import LoraConfig, inject_adapter_in_model

    module = torch.nn.Module()
    names = {place: f"{place}_proj" for place in places}
    with torch.device("meta"):
        for place, name in names.items():
            setattr(module, name, _base(*places[place], nf4))
        if nf4:
            module.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft reads it here
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(names.values())), module)
    for place, (inner, outer) in places.items():
        layer = getattr(module, names[place])
        weight = normal(generator, outer, inner, scale=inner**-0.5)
        layer.base_layer._parameters["weight"] = _packed(weight, layer.base_layer) if nf4 else _frozen(weight)
        layer.lora_A["default"].weight = torch.nn.Parameter(normal(generator, rank, inner, scale=inner**-0.5))
        layer.lora_B["default"].weight = torch.nn.Parameter(normal(generator, outer, rank, scale=rank**-0.5))
    return module


def _base(inner: int, outer: int, nf4: bool) -> torch.nn.Module:
    if not nf4:
        return torch.nn.Linear(inner, outer, bias=False, dtype=torch.bfloat16)
    from bitsandbytes.nn import Linear4bit

    return Linear4bit(inner, outer, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")


def _frozen(weight: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight, requires_grad=False)


def _packed(weight: Tensor, layer: torch.nn.Module) -> torch.nn.Parameter:
    from bitsandbytes.nn import Params4bit

    layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # it repacks weights after a forward on a CPU
    made: torch.nn.Parameter = Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer
    ).to(weight.device)
    return made


def _peft(inputs: Inputs, block: str) -> Results:
    module, x = inputs["module"], inputs["X"]
    if block == "mlp":
        return {"Y": module.down_proj(silu(module.gate_proj(x)) * module.up_proj(x))}
    return {name: getattr(module, f"{p}_proj")(x) for name, p in zip(OUTPUTS[block], PLACES[block], strict=True)}


def _unsloth(inputs: Inputs, block: str) -> Results:
    out = loading.unsloth("fast_lora", APPLY[block])(inputs["module"], inputs["X"])
    return dict(zip(OUTPUTS[block], out if isinstance(out, tuple) else (out,), strict=True))


def _proof(inputs: Inputs, block: str) -> None:
    """Whether Unsloth's autograd function ran, not PEFT's forward."""
    with torch.enable_grad():
        for name, value in _unsloth(inputs, block).items():
            if not (ran := type(value.grad_fn).__name__).startswith(FUNCTIONS[block]):
                raise RuntimeError(f"not exercised: {name} came from {ran}, not from {FUNCTIONS[block]}")
