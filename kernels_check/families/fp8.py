"""Products with weights of 8 bits (E4M3): w = v s, where a block of rows and columns, or a row, shares a scale s.

    quantised activations    q = round(x / a), a = max |x| / 448 over a row's block of columns (1 where all are zero)
    block product            y = sum over blocks of a s (q . v)
    product with x itself    y = sum of x w: for few tokens, by row or block scales
    linear layer             y from the quantised x; dx = W^T dy with W rounded to the storage dtype

Source: DeepSeek-V3 technical report (2024), section 3.3, and its inference/kernel.py, which Unsloth's fp8.py follows.
The quantisation is part of the reference: inputs whose quotient lies so near the middle of two E4M3 numbers that a
rounding error decides are set to zero when drawn. The linear layer in bfloat16 is left out: where torchao is installed,
Unsloth takes torchao's product for it.

Hopper's tensor cores align the 32 products of one step and the sum so far to the largest of them, keep 13 fraction bits
and drop the rest (DeepSeek-V3, section 3.5.2, "around 14 bits"): each of the 33 terms loses up to 2^-13 of the largest.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import DTYPES, Candidate, Case, Inputs, Results
from kernels_check.families import fp8_reference as of
from kernels_check.families.fp8_reference import FULL_BLOCK, Variant
from kernels_check.numerics import Bound

PROCESSORS = 132
"""Of an H100: on a CPU, what the launchers divide the columns among."""


Reference = Callable[[Inputs, Variant], Results]


@dataclass(frozen=True, kw_only=True)
class Group:
    """What the cases of one of Unsloth's functions share."""

    reference: Reference
    bounds: Callable[[Inputs, Results, Variant], dict[str, Bound]]
    call: Reference
    kernels: tuple[str, ...]
    variants: tuple[Variant, ...]


def cases() -> list[Case]:
    """Sizes within, at and past a block, one row, split sums."""
    one = ("bfloat16",)
    groups = [
        Group(
            reference=of.activations, bounds=of.quantise_bounds, call=_call_quantise, kernels=("act_quant_kernel",),
            variants=(
                Variant(name="activations", rows=7, width=96, dtypes=DTYPES),
                Variant(name="activations, one block", rows=1, width=FULL_BLOCK, block=FULL_BLOCK),
            ),
        ),
        Group(
            reference=of.block_product, bounds=of.product_bounds, call=_call_product,
            kernels=("_w8a8_block_fp8_matmul",),
            variants=(
                Variant(name="block product", rows=37, width=80, out=75, dtypes=DTYPES),
                Variant(name="block product, one row", rows=1, width=64, out=33),
                Variant(name="block product, past a tile", rows=130, width=32, out=70, dtypes=one),
                Variant(name="block product, full blocks", rows=19, width=264, out=136, block=FULL_BLOCK),
            ),
        ),
        Group(
            reference=of.quantised_product, bounds=of.quantised_bounds, call=_call_small,
            kernels=("_w8a8_block_fp8_small_m",),
            variants=(
                Variant(name="few rows", rows=3, width=384, out=48, block=FULL_BLOCK),
                Variant(name="few rows, split sum", rows=16, width=2048, out=16, block=FULL_BLOCK, dtypes=one),
            ),
        ),
        Group(
            reference=of.product, bounds=of.token_bounds, call=_call_rows, kernels=("_fp8_rowwise_gemv_kernel",),
            variants=(Variant(name="one token", rows=1, width=519, out=37, block=0),),
        ),
        Group(
            reference=of.product, bounds=of.token_bounds, call=_call_rows, kernels=("_fp8_rowwise_gemv_rows_kernel",),
            variants=(Variant(name="several tokens", rows=7, width=300, out=37, block=0),),
        ),
        Group(
            reference=of.product, bounds=of.token_bounds, call=_call_rows,
            kernels=("_fp8_rowwise_gemv_rows_kernel", "_fp8_rowwise_gemv_rows_reduce"),
            variants=(Variant(name="several tokens, split sum", rows=3, width=4100, out=21, block=0, dtypes=one),),
        ),
        Group(
            reference=of.product, bounds=of.token_bounds, call=_call_blocks, kernels=("_fp8_block_gemv_kernel",),
            variants=(
                Variant(name="tokens, block scales", rows=5, width=200, out=75),
                Variant(name="one token, block scales", rows=1, width=32, out=20),
            ),
        ),
        Group(
            reference=of.linear, bounds=of.linear_bounds, call=_call_linear,
            kernels=("act_quant_kernel", "_w8a8_block_fp8_matmul"),
            variants=tuple(
                Variant(name=name, rows=33, width=256, out=out, block=FULL_BLOCK, dtypes=("float16",))
                for name, out in (("linear layer", 128), ("linear layer, ends within a block", 200))
            ),
        ),
        Group(
            reference=of.weight, bounds=of.weight_bounds, call=_call_bytes, kernels=("_e4m3fn_bytes_dequant_kernel",),
            variants=(Variant(name="bytes, ends within a block", rows=0, width=75, out=37, dtypes=DTYPES),),
        ),
        Group(
            reference=of.weight, bounds=of.weight_bounds, call=_call_scales, kernels=("_e4m3fn_scale_dequant_kernel",),
            variants=(
                Variant(name="row scales", rows=0, width=259, out=21, block=0, dtypes=DTYPES),
                Variant(name="row scales, transposed", rows=0, width=40, out=19, block=0, transposed=True, dtypes=one),
            ),
        ),
    ]  # fmt: skip
    return [_case(group, variant) for group in groups for variant in group.variants]


def _case(group: Group, variant: Variant) -> Case:
    linear = group.reference is of.linear
    call = partial(_with, variant, group.call)
    return Case(
        family="fp8",
        name=variant.name,
        draw=partial(of.draw, variant=variant, quantised=group.reference is of.block_product, linear=linear),
        reference=partial(_with, variant, group.reference),
        bounds=lambda inputs, results: group.bounds(inputs, results, variant),
        candidates={"unsloth": Candidate(call=call, kernels=group.kernels)},
        gradients=("X",) if linear else (),
        dtypes=variant.dtypes,
    )


def _with(variant: Variant, function: Reference, inputs: Inputs) -> Results:
    return function(inputs, variant)


def _module(inputs: Inputs, stack: ExitStack, *names: str) -> Any:
    """Unsloth's fp8 module, on a CPU with the number of processors that its launchers ask for."""
    loading.unsloth("fp8", *names)
    module = loading.unsloth("fp8")
    tensor = inputs.get("X", inputs.get("values"))
    if tensor is not None and tensor.device.type == "cpu" and hasattr(module, "_SM_COUNTS"):
        stack.enter_context(patch.object(module, "_SM_COUNTS", (PROCESSORS,)))
    return module


def _stored(inputs: Inputs) -> Tensor:
    return inputs["values"].view(torch.float8_e4m3fn)


def _call_quantise(inputs: Inputs, variant: Variant) -> Results:
    q, a = loading.unsloth("fp8", "act_quant")(inputs["X"], variant.block)
    return {"Q": q, "a": a}


def _call_product(inputs: Inputs, variant: Variant) -> Results:
    product = loading.unsloth("fp8", "w8a8_block_fp8_matmul_triton")
    codes = inputs["codes"].view(torch.float8_e4m3fn)
    blocks = [variant.block, variant.block]
    dtype = getattr(torch, inputs["dtype"])
    return {"Y": product(codes, _stored(inputs), inputs["a"], inputs["scales"], blocks, output_dtype=dtype)}


def _call_small(inputs: Inputs, variant: Variant) -> Results:
    with ExitStack() as stack:
        module = _module(inputs, stack, "fp8_block_small_m_linear")
        return {"Y": module.fp8_block_small_m_linear(inputs["X"], _stored(inputs), inputs["scales"])}


def _call_rows(inputs: Inputs, variant: Variant) -> Results:
    product = loading.unsloth("fp8", "fp8_rowwise_gemv")
    return {"Y": product(inputs["X"], _stored(inputs), inputs["scales"])}


def _call_blocks(inputs: Inputs, variant: Variant) -> Results:
    with ExitStack() as stack:
        module = _module(inputs, stack, "_fp8_block_gemv")
        return {"Y": module._fp8_block_gemv(inputs["X"], _stored(inputs), inputs["scales"], *[variant.block] * 2)}


def _call_linear(inputs: Inputs, variant: Variant) -> Results:
    layer = loading.unsloth("fp8", "FP8BlockQuantLinear")
    weight = _stored(inputs)
    weight.block_size = [variant.block, variant.block]  # type: ignore[attr-defined]
    return {"Y": layer.apply(inputs["X"], weight, inputs["scales"])}


def _call_bytes(inputs: Inputs, variant: Variant) -> Results:
    read = loading.unsloth("fp8", "_e4m3fn_bytes_dequant")
    blocks = (variant.block, variant.block)
    return {"W": read(_stored(inputs), inputs["scales"], *blocks, getattr(torch, inputs["dtype"]))}


def _call_scales(inputs: Inputs, variant: Variant) -> Results:
    read, weight = loading.unsloth("fp8", "_scale_dequant_one_pass"), _stored(inputs)
    weight = weight.t().contiguous().t() if variant.transposed else weight
    return {"W": read(weight, inputs["scales"], getattr(torch, inputs["dtype"]))}
