"""Rotary position embedding of queries and keys: y = x cos + rotate_half(x) sin, the same angles for both halves.

Source: Su et al., RoFormer (2021); transformers' apply_rotary_pos_emb. With the halves x0, x1 and the angle of a
position:

    y0 = x0 cos - x1 sin,    y1 = x1 cos + x0 sin,        and the gradient rotates back with -sin

Tensors are [batch, heads, length, head width]; queries and keys may differ in their number of heads. Kernels may
compute a product in the storage dtype before they add, so that each of the two products is rounded once.
"""

from dataclasses import dataclass
from functools import partial
from inspect import signature

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import DTYPES, TWO_DTYPES, Candidate, Case, Inputs, Results
from kernels_check.numerics import Bound


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Sizes, how the tensors lie in memory, and whether positions are given."""

    name: str
    batch: int = 2
    heads: tuple[int, int] = (4, 2)
    length: int = 3
    width: int = 64
    positions: bool = False
    layout: str = "projected"
    """``projected``: a transposed view of [batch, length, heads, width]; ``dense``: contiguous, rotated in place;
    ``wide``: slices of one fused projection; ``expanded``: incoming gradients with stride 0 along the heads."""
    float32_angles: bool = False
    tables_apart: bool = False
    """The table of cosines is part of a wider one, so that its rows lie further apart than those of the sines."""
    dtypes: tuple[str, ...] = DTYPES


def cases() -> list[Case]:
    """With and without positions, every layout, odd numbers of heads, widths that are no power of two."""
    variants = [
        Variant(name="plain"),
        Variant(name="one token", batch=1, length=1),
        Variant(name="odd heads", heads=(7, 1), width=32),
        Variant(name="many heads", heads=(33, 19), width=96, batch=1, length=3),
        Variant(name="smallest width", width=2, heads=(3, 3)),
        Variant(name="wide head", width=256, heads=(5, 1), length=3),
        Variant(name="dense", layout="dense", dtypes=TWO_DTYPES),
        Variant(name="fused projection", layout="wide", dtypes=TWO_DTYPES),
        Variant(name="expanded gradient", layout="expanded", dtypes=TWO_DTYPES),
        Variant(name="float32 angles", float32_angles=True, dtypes=("bfloat16", "float16")),
        Variant(name="positions", positions=True),
        Variant(name="positions, odd heads", positions=True, heads=(7, 3), width=80, length=5),
        Variant(name="positions, dense", positions=True, layout="dense", dtypes=TWO_DTYPES),
        Variant(name="positions, fused projection", positions=True, layout="wide", dtypes=TWO_DTYPES),
        Variant(name="positions, tables apart", positions=True, tables_apart=True, dtypes=TWO_DTYPES),
        Variant(name="positions, expanded gradient", positions=True, layout="expanded", dtypes=TWO_DTYPES),
    ]
    return [_case(variant) for variant in variants]


def _case(variant: Variant) -> Case:
    in_place = () if variant.layout == "wide" else ("Q", "K")
    candidates = {
        "unsloth": Candidate(call=_unsloth, kernels=("_rope_embedding(_QK)?",), overwrites=in_place),
    }
    if not variant.positions and not variant.float32_angles:
        candidates["unsloth, one tensor"] = Candidate(
            call=_unsloth_single, kernels=("_rope_embedding(_QK)?",), overwrites=in_place
        )
        candidates["liger"] = Candidate(call=_liger, kernels=("_triton_rope",), overwrites=(*in_place, "dQr", "dKr"))
    return Case(
        family="rope",
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
        return torch.randn(shape, generator=generator).to(dtype)

    frequencies = 10000.0 ** (-torch.arange(0, v.width, 2) / v.width)
    angles = torch.arange(rows if v.positions else v.length + 2)[:, None] * frequencies
    angles = torch.cat([angles, angles], 1)
    table = torch.float32 if v.float32_angles else dtype
    inputs: Inputs = {"cos": angles.cos().to(table), "sin": angles.sin().to(table), "positions": None}
    if v.tables_apart:
        inputs["cos"] = torch.cat([inputs["cos"], torch.full_like(inputs["cos"], torch.nan)], 1)[:, : v.width]
    if v.positions:
        inputs["positions"] = torch.randint(0, rows, (v.batch, v.length), generator=generator, dtype=torch.int32)
    fused = normal(v.batch, v.length, sum(v.heads) + 1, v.width)
    starts = (0, v.heads[0])
    for name, heads, start in zip("QK", v.heads, starts, strict=True):
        x = normal(v.batch, v.length, heads, v.width)
        if v.layout == "wide":
            x = fused[:, :, start : start + heads]
        x = x.transpose(1, 2)
        dy = normal(v.batch, v.length, heads, v.width).transpose(1, 2)
        if v.layout == "expanded":
            dy = dy[:, :1].expand(-1, heads, -1, -1)
        inputs[name] = x.contiguous() if v.layout == "dense" else x
        inputs[f"d{name}r"] = dy
    return inputs


def _rotated(inputs: Inputs, name: str, *, size: bool = False) -> Tensor:
    """The rotation, or with ``size`` the sum of its terms' magnitudes."""
    x, cos, sin = inputs[name], inputs["cos"], inputs["sin"]
    if inputs["positions"] is not None:
        where = inputs["positions"].long()
        cos, sin = cos[where].unsqueeze(1), sin[where].unsqueeze(1)
    else:
        cos, sin = cos[: x.shape[2]], sin[: x.shape[2]]
    first, second = x.chunk(2, -1)
    half = torch.cat([second, first] if size else [-second, first], -1)
    if size:
        return x.abs() * cos.abs() + half.abs() * sin.abs()
    return x * cos + half * sin


def _reference(inputs: Inputs) -> Results:
    return {"Qr": _rotated(inputs, "Q"), "Kr": _rotated(inputs, "K")}


def _bounds(inputs: Inputs, results: Results) -> dict[str, Bound]:
    def bound(name: str) -> Bound:
        terms = _rotated(inputs, name, size=True)
        return Bound(steps=4, magnitude=terms, rounded=terms, spacings=3.0)

    return {"Qr": bound("Q"), "Kr": bound("K"), "dQ": bound("dQr"), "dK": bound("dKr")}


def _tables(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs["cos"], inputs["sin"]


def _unsloth(inputs: Inputs) -> Results:
    apply = loading.unsloth("rope_embedding", "fast_rope_embedding")
    positions = () if inputs["positions"] is None else (inputs["positions"],)
    if positions and len(signature(apply).parameters) < 5:
        raise loading.Missing("this release's fast_rope_embedding takes no positions")
    q, k = apply(inputs["Q"], inputs["K"], *_tables(inputs), *positions)
    return {"Qr": q, "Kr": k}


def _unsloth_single(inputs: Inputs) -> Results:
    """The function for one tensor, [batch, length, heads, width]."""
    function = loading.unsloth("rope_embedding", "Fast_RoPE_Embedding")
    turned = {n: function.apply(inputs[n].transpose(1, 2), *_tables(inputs)).transpose(1, 2) for n in "QK"}
    return {"Qr": turned["Q"], "Kr": turned["K"]}


def _liger(inputs: Inputs) -> Results:
    function, length = loading.liger("rope", "LigerRopeFunction"), inputs["Q"].shape[2]
    cos, sin = (table[:length].unsqueeze(0) for table in _tables(inputs))
    q, k = function.apply(inputs["Q"], inputs["K"], cos, sin)
    return {"Qr": q, "Kr": k}
