"""Weights stored as small floats, read back.

- fp8: w = x s with x of 8 bits (E4M3) and one float32 scale for a block of rows and columns (DeepSeek-V3).
- nvfp4: w = x (s / g) with x of 4 bits (E2M1; the even column in the low half of a byte), an E4M3 scale for 16 columns
  of a row and one float32 scale g for all (compressed-tensors' nvfp4-pack-quantized).

Small floats are exact in float32; the product is rounded once, and for nvfp4 the quotient before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import DTYPES, TWO_DTYPES, Candidate, Case, Inputs, Results
from kernels_check.numerics import Bound

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
GROUP = 16
BLOCK = 32
"""Of fp8; 128 in models, which would make the interpreted cases slow."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A format and a weight's shape. ``wide_scale``: nvfp4's block scales in float32, as some checkpoints hold them."""

    name: str
    kind: str
    shape: tuple[int, int]
    wide_scale: bool = False
    dtypes: tuple[str, ...] = DTYPES


def cases() -> list[Case]:
    """Whole blocks, sizes that end within one, more than one program in both directions."""
    variants = [
        Variant(name="fp8, whole blocks", kind="fp8", shape=(64, 96)),
        Variant(name="fp8, ends within a block", kind="fp8", shape=(37, 75), dtypes=TWO_DTYPES),
        Variant(name="fp8, one column", kind="fp8", shape=(40, 1), dtypes=TWO_DTYPES),
        Variant(name="nvfp4", kind="nvfp4", shape=(8, 64)),
        Variant(name="nvfp4, several programs", kind="nvfp4", shape=(9, 544), dtypes=TWO_DTYPES),
        Variant(name="nvfp4, float32 scales", kind="nvfp4", shape=(5, 48), wide_scale=True, dtypes=TWO_DTYPES),
    ]
    return [_case(variant) for variant in variants]


def _case(variant: Variant) -> Case:
    calls: dict[str, tuple[Callable[[Inputs], Results], str]] = {
        "fp8": (_unsloth_fp8, "weight_dequant_kernel"),
        "nvfp4": (_unsloth_nvfp4, "_nvfp4_dequant_kernel"),
    }
    call, kernel = calls[variant.kind]
    return Case(
        family="float_weights",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=_reference_fp8 if variant.kind == "fp8" else read_nvfp4,
        bounds=_bounds,
        candidates={"unsloth": Candidate(call=call, kernels=(kernel,))},
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    rows, width = variant.shape

    def codes(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    inputs: Inputs = {"dtype": str(dtype).removeprefix("torch.")}
    if variant.kind == "fp8":
        values = codes(rows, width)
        values[(values & 127) == 127] = 0x7E  # not NaN but the largest
        scales = torch.rand((-(-rows // BLOCK), -(-width // BLOCK)), generator=generator) * 0.01 + 2.0**-10
        return inputs | {"values": values, "scales": scales}
    scales = codes(rows, width // GROUP) & 127  # positive
    scales[scales == 127] = 0x7E
    if variant.wide_scale:
        scales = scales.view(torch.float8_e4m3fn).float()
    return inputs | {"values": codes(rows, width // 2), "scales": scales, "global": torch.tensor([733.0])}


def _e4m3(values: Tensor) -> Tensor:
    return values.view(torch.float8_e4m3fn).double() if values.dtype == torch.uint8 else values


def _reference_fp8(inputs: Inputs) -> Results:
    rows, width = inputs["values"].shape
    scales = inputs["scales"].repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :width]
    return {"W": _e4m3(inputs["values"]) * scales}


def read_nvfp4(inputs: Inputs) -> Results:
    """W from ``values``, ``scales`` and ``global``."""
    bytes_ = inputs["values"].long()
    codes = torch.stack([bytes_ & 15, bytes_ >> 4], 2).flatten(1)
    values = torch.tensor(E2M1, dtype=torch.float64)[codes & 7] * torch.where(codes >= 8, -1.0, 1.0)
    return {"W": values * (_e4m3(inputs["scales"]) / inputs["global"].double()).repeat_interleave(GROUP, 1)}


def _bounds(inputs: Inputs, results: Results) -> dict[str, Bound]:
    return {"W": Bound(steps=2)}


def _unsloth_fp8(inputs: Inputs) -> Results:
    read = loading.unsloth("fp8", "weight_dequant_block")
    values = inputs["values"].view(torch.float8_e4m3fn)
    return {"W": read(values, inputs["scales"], BLOCK, dtype=getattr(torch, inputs["dtype"]))}


def _unsloth_nvfp4(inputs: Inputs) -> Results:
    """The kernel's own launcher: the public function takes PyTorch's operations off CUDA."""
    read = loading.unsloth("nvfp4", "_nvfp4_dequantize_triton")
    scales = inputs["scales"]
    scales = scales.view(torch.float8_e4m3fn) if scales.dtype == torch.uint8 else scales
    return {"W": read(inputs["values"], scales, inputs["global"], getattr(torch, inputs["dtype"]))}
