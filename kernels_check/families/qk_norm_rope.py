"""Norm of every head and rotary embedding in one kernel for queries and keys (Qwen 3): y = rope(x r w), with
r = 1 / sqrt(mean(x^2) + eps) over a head.

Source: Qwen3Attention in transformers: Qwen3RMSNorm, then apply_rotary_pos_emb (see ``rms_layernorm`` and ``rope``).
The norms' weights are frozen, as with LoRA. Tensors are [batch, length, heads, width]. x r, the norm's output and every
product with cos or sin are rounded to the storage dtype, and so is the gradient between the two.
"""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import DTYPES, TWO_DTYPES, Candidate, Case, Inputs, Results
from kernels_check.families import simulated
from kernels_check.families.simulated import Rounding
from kernels_check.numerics import Bound

EPS = {"Q": 1e-6, "K": 1e-3}
"""Unlike, so that taking the other one's shows."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Sizes, whether positions are given, layout and magnitude of the inputs."""

    name: str
    batch: int = 2
    heads: tuple[int, int] = (4, 2)
    length: int = 2
    width: int = 64
    positions: bool = False
    layout: str = "projected"
    """``wide``: slices of one fused projection; ``expanded``: incoming gradients with stride 0 along the heads."""
    scale: float = 1.0
    dtypes: tuple[str, ...] = DTYPES


def cases() -> list[Case]:
    """Head counts that do not fill a block, every layout, positions, tiny values, where eps matters."""
    variants = [
        Variant(name="plain"),
        Variant(name="one token", batch=1, length=1, dtypes=TWO_DTYPES),
        Variant(name="odd heads", heads=(7, 3), width=16, batch=1, dtypes=TWO_DTYPES),
        Variant(name="many heads", heads=(33, 5), width=128, batch=2, length=1, dtypes=("bfloat16",)),
        Variant(name="fused projection", layout="wide", dtypes=("bfloat16",)),
        Variant(name="expanded gradient", layout="expanded", dtypes=("bfloat16",)),
        Variant(name="positions", positions=True, heads=(5, 1), dtypes=TWO_DTYPES),
        Variant(name="tiny", scale=2.0**-9, width=32, dtypes=TWO_DTYPES),
    ]
    return [_case(variant) for variant in variants]


def _case(variant: Variant) -> Case:
    candidates = {"unsloth": Candidate(call=_unsloth, kernels=("_qk_norm_rope_forward", "_qk_norm_rope_backward"))}
    if variant.name in ("plain", "fused projection"):
        kernels = (*(f"_rms_layernorm_{way}(_rows)?" for way in ("forward", "backward")), "_rope_embedding_QK")
        candidates["unsloth, two steps"] = Candidate(call=_unsloth_two_steps, kernels=kernels)
    return Case(
        family="qk_norm_rope",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=_reference,
        bounds=_bounds,
        candidates=candidates,
        gradients=("Q", "K"),
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    v, rows = variant, 3 * variant.length

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    angles = torch.arange(rows)[:, None] * 10000.0 ** (-torch.arange(0, v.width, 2) / v.width)
    angles = torch.cat([angles, angles], 1)
    inputs: Inputs = {"cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype), "positions": None}
    inputs["dtype"] = str(dtype).removeprefix("torch.")
    if v.positions:
        inputs["positions"] = torch.randint(0, rows, (v.batch, v.length), generator=generator, dtype=torch.int32)
    fused = (normal(v.batch, v.length, sum(v.heads) + 1, v.width) * v.scale).to(dtype)
    for name, heads, start in zip("QK", v.heads, (0, v.heads[0]), strict=True):
        x = (normal(v.batch, v.length, heads, v.width) * v.scale).to(dtype)
        dy = normal(v.batch, v.length, heads, v.width).to(dtype).transpose(1, 2)
        inputs[name] = fused[:, :, start : start + heads] if v.layout == "wide" else x
        inputs[f"d{name}r"] = dy[:, :1].expand(-1, heads, -1, -1) if v.layout == "expanded" else dy
        inputs[f"W{name}"] = (1 + 0.3 * normal(v.width)).to(dtype)
    return inputs


def _angles(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """cos and sin as [batch or 1, length, 1, half width]."""
    half = inputs["cos"].shape[1] // 2
    where = inputs["positions"]
    rows = torch.arange(inputs["Q"].shape[1])[None] if where is None else where.long()
    return inputs["cos"][rows][..., None, :half], inputs["sin"][rows][..., None, :half]


def _reference(inputs: Inputs) -> Results:
    exact = Rounding(None)
    return {f"{name}r": _forward(inputs, name, exact) for name in "QK"}


def _forward(inputs: Inputs, name: str, r: Rounding) -> Tensor:
    x, w = inputs[name], inputs[f"W{name}"]
    inverse = (x.square().mean(-1, keepdim=True) + EPS[name]).rsqrt()
    y = r(r(x * inverse, x.shape[-1] + 8) * w)
    first, second = y.chunk(2, -1)
    cos, sin = _angles(inputs)
    turned = torch.cat([r(first * cos) - r(second * sin), r(second * cos) + r(first * sin)], -1)
    return turned.transpose(1, 2)


def _backward(inputs: Inputs, name: str, r: Rounding) -> Tensor:
    x, w, width = inputs[name], inputs[f"W{name}"], inputs[name].shape[-1]
    first, second = inputs[f"d{name}r"].transpose(1, 2).chunk(2, -1)
    cos, sin = _angles(inputs)
    turned = torch.cat([r(r(first * cos) + r(second * sin)), r(r(second * cos) - r(first * sin))], -1)
    inverse = (x.square().mean(-1, keepdim=True) + EPS[name]).rsqrt()
    n, g = x * inverse, turned * w
    terms = inverse * (g.abs() + n.abs() * (g * n).abs().mean(-1, keepdim=True))
    return r(inverse * (g - n * (g * n).mean(-1, keepdim=True)), 2 * width + 16, terms, stored=False)


def _bounds(inputs: Inputs, results: Results) -> dict[str, Bound]:
    def algorithm(r: Rounding) -> Results:
        forward = {f"{name}r": _forward(inputs, name, r) for name in "QK"}
        return forward | {f"d{name}": _backward(inputs, name, r) for name in "QK"}

    return simulated.bounds(algorithm, getattr(torch, inputs["dtype"]), results)


def _unsloth(inputs: Inputs) -> Results:
    """The kernels' own function: off CUDA the public one takes two steps."""
    function, where = loading.unsloth("qk_norm_rope", "Fast_QK_Norm_RoPE"), inputs["positions"]
    rows = inputs["cos"].new_empty(1, dtype=torch.int32) if where is None else where.reshape(-1)
    tensors = (inputs[name] for name in ("Q", "K", "WQ", "WK", "cos", "sin"))
    q, k = function.apply(*tensors, rows, EPS["Q"], EPS["K"], where is not None)
    return {"Qr": q.transpose(1, 2), "Kr": k.transpose(1, 2)}


def _unsloth_two_steps(inputs: Inputs) -> Results:
    """What Unsloth does where the fused kernel does not apply: the norms' gradients overwrite their incoming ones."""
    function = loading.unsloth("qk_norm_rope", "_unfused")
    norms = [SimpleNamespace(weight=inputs[f"W{name}"], variance_epsilon=EPS[name]) for name in "QK"]
    q, k = function(*norms, inputs["Q"], inputs["K"], inputs["cos"], inputs["sin"], inputs["positions"])
    return {"Qr": q, "Kr": k}
