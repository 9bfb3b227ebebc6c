"""Root-mean-square norm in the ways that Unsloth's models call it beside the plain one (see ``rms_layernorm``):

- ``reuse_grad``: dX overwrites dY.
- ``save_output``: with a frozen weight the backward pass recovers n = Y / w from the stored output, instead of X r;
  n then carries the roundings of the output. Unsloth does so only where no w is 0.
- decoding: the residual sum h = x + residual and the norm of h in one kernel, in place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import DTYPES, TWO_DTYPES, Candidate, Case, Inputs, Results
from kernels_check.families import simulated
from kernels_check.families.simulated import Rounding
from kernels_check.numerics import Bound

EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way and one kind of input. ``wide``: X is a slice of wider rows."""

    name: str
    way: str
    shape: tuple[int, ...] = (2, 3, 67)
    gemma: bool = False
    scale: float = 1.0
    wide: bool = False
    dtypes: tuple[str, ...] = DTYPES


def cases() -> list[Case]:
    """Odd widths, one row, several blocks of threads, tiny values, where eps matters, and strided rows."""
    return [_case(variant) for variant in _variants()]


def _variants() -> Iterator[Variant]:
    for gemma in (False, True):
        norm = "gemma" if gemma else "llama"
        yield Variant(name=f"{norm}, saved output", way="save_output", gemma=gemma)
        yield Variant(
            name=f"{norm}, saved output, tiny", way="save_output", gemma=gemma, scale=2.0**-9, dtypes=TWO_DTYPES
        )
        yield Variant(name=f"{norm}, gradient reused", way="reuse_grad", gemma=gemma, dtypes=TWO_DTYPES)
    yield Variant(name="sum and norm", way="add", shape=(3, 1, 129))
    yield Variant(name="sum and norm, one row", way="add", shape=(1, 1, 1025), dtypes=TWO_DTYPES)
    yield Variant(name="sum and norm, tiny", way="add", shape=(2, 1, 61), scale=2.0**-9)
    yield Variant(name="sum and norm, slices", way="add", shape=(4, 1, 80), wide=True, dtypes=TWO_DTYPES)
    yield Variant(name="no sum", way="copy", shape=(3, 1, 77), dtypes=TWO_DTYPES)


def _case(variant: Variant) -> Case:
    decoding = variant.way in ("add", "copy")
    kernels = ("_(gemma_)?rms_layernorm_forward(_rows)?", "_rms_layernorm_backward(_rows)?")
    overwrites = ("X", "residual") if decoding else ("dY",) if variant.way == "reuse_grad" else ()
    return Case(
        family="rms_layernorm_options",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=partial(_reference, variant=variant),
        bounds=partial(_bounds, variant=variant),
        candidates={
            "unsloth": Candidate(
                call=partial(_unsloth_decoding if decoding else _unsloth, variant=variant),
                kernels=("_add_rms_layernorm_inference",) if decoding else kernels,
                overwrites=overwrites,
            )
        },
        gradients=() if decoding else ("X",),
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    width = variant.shape[-1]
    rows = torch.exp2(torch.randint(-3, 4, (*variant.shape[:-1], 1), generator=generator).float())
    wide = (normal(*variant.shape[:-1], width + 16) * rows * variant.scale).to(dtype)
    inputs: Inputs = {
        "X": wide[..., :width] if variant.wide else wide[..., :width].contiguous(),
        "W": ((0.0 if variant.gemma else 1.0) + 0.3 * normal(width).clamp(-2, 2)).to(dtype),
        "dtype": str(dtype).removeprefix("torch."),
    }
    if variant.way in ("add", "copy"):
        return inputs | {"residual": (normal(*variant.shape) * rows * variant.scale).to(dtype)}
    return inputs | {"dY": normal(*variant.shape).to(dtype)}


def _reference(inputs: Inputs, variant: Variant) -> Results:
    return _forward(inputs, variant, Rounding(None))


def _forward(inputs: Inputs, variant: Variant, r: Rounding) -> Results:
    x = inputs["X"]
    results = {}
    if variant.way in ("add", "copy"):
        h = x + inputs["residual"] if variant.way == "add" else x
        results, x = {"h": h}, r(h) if variant.way == "add" else x
    n = x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
    if variant.gemma:
        return results | {"Y": r(n * (1 + inputs["W"]), x.shape[-1] + 8, stored=False)}
    return results | {"Y": r(n, x.shape[-1] + 8) * inputs["W"]}


def _bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    x, width = inputs["X"], inputs["X"].shape[-1]
    weight = 1 + inputs["W"] if variant.gemma else inputs["W"]

    def algorithm(r: Rounding) -> Results:
        forward = _forward(inputs, variant, r)
        if "dX" not in results:
            return forward
        inverse = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
        n = r(forward["Y"]) / weight if variant.way == "save_output" else x * inverse
        g = inputs["dY"] * weight
        size = inverse * (g.abs() + n.abs() * (g * n).abs().mean(-1, keepdim=True))
        return forward | {
            "dX": r(inverse * (g - n * (g * n).mean(-1, keepdim=True)), 2 * width + 16, size, stored=False)
        }

    return simulated.bounds(algorithm, getattr(torch, inputs["dtype"]), results)


def _unsloth(inputs: Inputs, variant: Variant) -> Results:
    module = loading.unsloth("rms_layernorm")
    function = loading.unsloth("rms_layernorm", "Fast_RMS_Layernorm", "_SAVE_OUTPUT")[0]
    with patch.object(module, "_SAVE_OUTPUT", True):  # an environment variable, read when the module is imported
        options = variant.way == "save_output", variant.way == "reuse_grad"
        y = function.apply(inputs["X"], inputs["W"], EPS, variant.gemma, *options)
    if variant.way == "save_output" and not hasattr(y, "_unsloth_rmsnorm_saved"):
        raise RuntimeError("the norm did not save its output")
    return {"Y": y}


def _unsloth_decoding(inputs: Inputs, variant: Variant) -> Results:
    add = loading.unsloth("fused_add_rms_layernorm", "fast_add_rms_layernorm_inference")
    y = add(inputs["X"], inputs["residual"], inputs["W"], EPS, add=variant.way == "add")
    return {"Y": y, "h": inputs["residual"]}
