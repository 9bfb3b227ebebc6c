"""Products with weights of 4 bits (nvfp4), which are read within the product: y = W x and dx = W^T dy.

Source: compressed-tensors' nvfp4-pack-quantized; ``float_weights`` has the format. W is rounded to the storage dtype,
as if it were read before, and the product summed in float32. On a GPU that it was not tuned for (an H100 among them)
Unsloth takes this path only where UNSLOTH_NVFP4_FUSED=1; the launchers are called directly.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import Candidate, Case, Inputs, Results
from kernels_check.families.float_weights import GROUP, read_nvfp4
from kernels_check.numerics import Bound, rounded_sum

PROCESSORS = 132
"""Of an H100: on a CPU, what the launchers divide a sum among."""
SPLIT = 16
"""Parts of a sum, at most."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """``rows`` of x, ``width`` columns in, ``out`` rows of the weight; ``split``: one of the sums is split."""

    name: str
    rows: int
    width: int
    out: int
    split: bool = False
    wide_scale: bool = False
    dtypes: tuple[str, ...] = ("bfloat16",)


def cases() -> list[Case]:
    """Sizes that end within a tile, one row, long sums in either direction, more rows than a tile."""
    variants = [
        Variant(name="few rows", rows=5, width=96, out=50, dtypes=("float16", "bfloat16")),
        Variant(name="one row, split sum", rows=1, width=1040, out=33, split=True),
        Variant(name="split sum of the gradient", rows=3, width=32, out=520, split=True, dtypes=("float16",)),
        Variant(name="more rows", rows=37, width=64, out=70, wide_scale=True),
    ]
    return [_case(variant) for variant in variants]


def _case(variant: Variant) -> Case:
    kernels = ("_nvfp4_matmul_fwd_kernel", "_nvfp4_matmul_dx_kernel") + ("_split_sum_kernel",) * variant.split
    return Case(
        family="nvfp4_products",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=_reference,
        bounds=_bounds,
        candidates={"unsloth": Candidate(call=_unsloth, kernels=kernels)},
        gradients=("X",),
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    rows, width, out = variant.rows, variant.width, variant.out
    packed = torch.randint(0, 256, (out, width // 2), generator=generator, dtype=torch.uint8)
    scales = (torch.rand((out, width // GROUP), generator=generator) * 400 + 20).to(torch.float8_e4m3fn)
    return {
        "X": torch.randn((rows, width), generator=generator).to(dtype),
        "dY": torch.randn((rows, out), generator=generator).to(dtype),
        "values": packed,
        "scales": scales.float() if variant.wide_scale else scales.view(torch.uint8),
        "global": torch.tensor([733.0]),
    }


def _reference(inputs: Inputs) -> Results:
    w = read_nvfp4(inputs)["W"]
    return {"Y": inputs["X"] @ w.mT, "dX": inputs["dY"] @ w}


def _bounds(inputs: Inputs, results: Results) -> dict[str, Bound]:
    w = read_nvfp4(inputs)["W"]

    def bound(x: Tensor, weight: Tensor, result: Tensor) -> Bound:
        """Of x weight^T, where each weight was rounded before."""
        rounded = rounded_sum(x[:, None] * weight, 2, result.numel())
        return Bound(steps=x.shape[1] + SPLIT, magnitude=x.abs() @ weight.abs().mT, rounded=rounded)

    return {"Y": bound(inputs["X"], w, results["Y"]), "dX": bound(inputs["dY"], w.mT, results["dX"])}


def _unsloth(inputs: Inputs) -> Results:
    forward, backward = loading.unsloth("nvfp4", "_nvfp4_matmul_fwd_fused", "_nvfp4_matmul_dx_fused")
    scales = inputs["scales"]
    scales = scales.view(torch.float8_e4m3fn) if scales.dtype == torch.uint8 else scales
    weight = inputs["values"], scales, inputs["global"]
    with torch.no_grad(), ExitStack() as stack:
        if scales.device.type == "cpu":
            stack.enter_context(patch.object(loading.unsloth("nvfp4"), "_sm_count", lambda index: PROCESSORS))
        return {"Y": forward(inputs["X"], *weight), "dX": backward(inputs["dY"], *weight)}
