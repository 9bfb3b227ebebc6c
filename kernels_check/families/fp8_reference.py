"""Inputs, references and bounds of the products with weights of 8 bits; ``fp8`` says what they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels_check.case import Inputs, Results
from kernels_check.numerics import Bound, rounded_sum, unit_roundoff

BOTH = ("float16", "bfloat16")
LARGEST = 448.0
NEAR_A_TIE = 1e-4
STEP = 32
KEPT_BITS = 13
SMALL_BLOCK = 32
"""128 in models; the kernels that fix it get it."""
FULL_BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Variant:
    """``rows`` of x, ``width`` columns in, ``out`` rows of the weight; ``block`` of the scales, 0 is a scale a row."""

    name: str
    rows: int
    width: int
    out: int = 0
    block: int = SMALL_BLOCK
    transposed: bool = False
    """The weight lies transposed in memory."""
    dtypes: tuple[str, ...] = BOTH


def draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant, quantised: bool, linear: bool) -> Inputs:
    """``quantised``: x comes as codes and scales, as the block product gets it."""
    rows, width, out, block = variant.rows, variant.width, variant.out, variant.block
    blocks = -(-width // block) if block else 1

    def codes(*shape: int) -> Tensor:
        values = (torch.randn(shape, generator=generator) * 60).clamp(-LARGEST, LARGEST)
        return values.to(torch.float8_e4m3fn).view(torch.uint8)

    def scales(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 0.01 + 2.0**-10

    inputs: Inputs = {"dtype": str(dtype).removeprefix("torch.")}
    if quantised:
        inputs |= {"codes": codes(rows, width), "a": scales(rows, blocks)}
    elif rows:
        x = torch.randn((rows, width), generator=generator).to(dtype)
        if block and width % block == 0:
            x[1:2, :block] = 0
            quotient = (x.double().view(rows, blocks, block) / scale(x.double(), block)[..., None]).view(rows, width)
            x[e4m3(quotient * (1 + NEAR_A_TIE)) != e4m3(quotient * (1 - NEAR_A_TIE))] = 0
        inputs["X"] = x
    if out:
        inputs |= {"values": codes(out, width), "scales": scales(-(-out // (block or 1)), blocks)}
    if linear:
        inputs["dY"] = torch.randn((rows, out), generator=generator).to(dtype)
    return inputs


def e4m3(values: Tensor) -> Tensor:
    """Rounded to E4M3, of double values; or the values of codes."""
    small = values if values.dtype == torch.uint8 else values.clamp(-LARGEST, LARGEST).float().to(torch.float8_e4m3fn)
    return small.view(torch.float8_e4m3fn).double()


def scale(x: Tensor, block: int) -> Tensor:
    """a of every row and block."""
    a = x.unflatten(1, (-1, block)).abs().amax(2) / LARGEST
    return a.where(a != 0, 1.0)


def _spread(scales: Tensor, block: int, width: int) -> Tensor:
    """A scale for every column."""
    return scales.repeat_interleave(block, 1)[:, :width]


def _weights(inputs: Inputs, variant: Variant) -> Tensor:
    """w = v s in float64."""
    out, width, block = variant.out, variant.width, variant.block
    if not block:
        return e4m3(inputs["values"]) * inputs["scales"]
    return e4m3(inputs["values"]) * _spread(inputs["scales"].repeat_interleave(block, 0)[:out], block, width)


def _rounded_x(inputs: Inputs, variant: Variant) -> tuple[Tensor, Tensor]:
    """q and a scale for every column."""
    x, block = inputs["X"].detach(), variant.block
    a = _spread(scale(x, block), block, variant.width)
    return e4m3(x / a), a


def activations(inputs: Inputs, variant: Variant) -> Results:
    a = scale(inputs["X"], variant.block)
    return {"Q": inputs["X"] / _spread(a, variant.block, variant.width), "a": a}


def quantise_bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    return {"Q": Bound(steps=4, dtype=torch.float8_e4m3fn), "a": Bound(steps=2, dtype=torch.float32)}


def block_product(inputs: Inputs, variant: Variant) -> Results:
    x = e4m3(inputs["codes"]) * _spread(inputs["a"], variant.block, variant.width)
    return {"Y": x @ _weights(inputs, variant).mT}


def product_bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    a = _spread(inputs["a"], variant.block, variant.width)
    return {"Y": _tensor_core_bound(e4m3(inputs["codes"]), a, inputs, variant)}


def _tensor_core_bound(q: Tensor, a: Tensor, inputs: Inputs, variant: Variant) -> Bound:
    """Of a sum of products of 8-bit numbers q and v that are scaled block by block."""
    w, values, block = _weights(inputs, variant), e4m3(inputs["values"]), variant.block
    scales = inputs["scales"].repeat_interleave(block, 0)[: variant.out]
    factors = a[:, None, ::block] * scales
    dropped = torch.zeros(len(q), variant.out, dtype=torch.float64)
    for place in range(0, variant.width, block):
        products = q[:, None, place : place + block] * values[None, :, place : place + block]
        total = torch.zeros(products.shape[:2], dtype=torch.float64)
        lost = torch.zeros_like(total)
        for part in products.split(STEP, 2):
            lost += (STEP + 1) * 2.0**-KEPT_BITS * part.abs().amax(2).maximum(total.abs())
            total += part.sum(2)
        dropped += lost * factors[..., place // block]
    unit = unit_roundoff(getattr(torch, inputs["dtype"]))
    return Bound(steps=variant.width + 4, magnitude=(q * a).abs() @ w.abs().mT, rounded=dropped / unit)


def quantised_product(inputs: Inputs, variant: Variant) -> Results:
    q, a = _rounded_x(inputs, variant)
    return {"Y": (q * a) @ _weights(inputs, variant).mT}


def quantised_bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    q, a = _rounded_x(inputs, variant)
    return {"Y": _tensor_core_bound(q, a, inputs, variant)}


def product(inputs: Inputs, variant: Variant) -> Results:
    return {"Y": inputs["X"] @ _weights(inputs, variant).mT}


def token_bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    sums = inputs["X"].abs() @ _weights(inputs, variant).abs().mT
    return {"Y": Bound(steps=variant.width + 4, magnitude=sums)}


def linear(inputs: Inputs, variant: Variant) -> Results:
    return quantised_product(inputs, variant) | {"dX": inputs["dY"] @ _weights(inputs, variant)}


def linear_bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    w, dy = _weights(inputs, variant), inputs["dY"]
    rounded = rounded_sum(dy[:, :, None] * w, 1, results["dX"].numel())
    dx = Bound(steps=variant.out + 2, magnitude=dy.abs() @ w.abs(), rounded=rounded)
    return quantised_bounds(inputs, results, variant) | {"dX": dx}


def weight(inputs: Inputs, variant: Variant) -> Results:
    return {"W": _weights(inputs, variant)}


def weight_bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    """Row scales are rounded to the storage dtype before, but to float16, whose range is too small for them."""
    rounded = results["W"] if not variant.block and inputs["dtype"] != "float16" else None
    return {"W": Bound(steps=1, rounded=rounded)}
