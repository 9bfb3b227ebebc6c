"""NF4 weights dequantised, and multiplied with one token (see ``families``).

``eager`` is what transformers' NF4 layers call: bitsandbytes' own functions. The weight is the MLP's first projection.
"""

from functools import partial

import torch

from kernels_check import loading
from kernels_check.case import Inputs, Results
from kernels_check.families import nf4_weights
from kernels_check.speed.lora import weight_bytes
from kernels_check.speed.operation import FORWARD, ITEM, Implementation, Operation, Shape, normal


def operations(shape: Shape) -> list[Operation]:
    """Forward only: neither has a backward of its own."""
    packed, elements = weight_bytes(shape.hidden, shape.inter, True), shape.hidden * shape.inter
    dequantise = {
        "unsloth": Implementation(call=_unsloth, kernels=("_nf4_dequant_kernel",)),
        "eager": Implementation(call=_bitsandbytes),
    }
    gemv = {
        "unsloth": Implementation(call=_unsloth_product, kernels=("_gemv_nf4_(words_)?kernel",)),
        "eager": Implementation(call=_bitsandbytes_product),
    }
    dims = {"hidden": shape.hidden, "inter": shape.inter}
    return [
        Operation(
            family="nf4_dequantise", shape=shape.name, dims=dims, draw=partial(_draw, shape=shape, token=False),
            candidates=dequantise, traffic={FORWARD: packed + elements * ITEM}, flops={FORWARD: 0},
        ),
        Operation(
            family="nf4_gemv", shape=shape.name, dims=dims | {"rows": 1},
            draw=partial(_draw, shape=shape, token=True), candidates=gemv,
            traffic={FORWARD: packed + (shape.hidden + shape.inter) * ITEM}, flops={FORWARD: 2 * elements},
        ),
    ]  # fmt: skip


def _draw(generator: torch.Generator, *, shape: Shape, token: bool) -> Inputs:
    weight = normal(generator, shape.inter, shape.hidden)
    inputs: Inputs = dict(nf4_weights.draw(weight))
    inputs["state"] = nf4_weights.state(inputs, weight.shape, weight.dtype)
    return inputs | ({"X": normal(generator, 1, 1, shape.hidden)} if token else {})


def _unsloth(inputs: Inputs) -> Results:
    return {"W": loading.unsloth("utils", "fast_dequantize")(inputs["packed"], inputs["state"])}


def _bitsandbytes(inputs: Inputs) -> Results:
    from bitsandbytes.functional import dequantize_4bit

    return {"W": dequantize_4bit(inputs["packed"], inputs["state"])}


def _unsloth_product(inputs: Inputs) -> Results:
    return {"Y": loading.unsloth("utils", "fast_gemv")(inputs["X"], inputs["packed"], inputs["state"])}


def _bitsandbytes_product(inputs: Inputs) -> Results:
    from bitsandbytes import matmul_4bit

    return {"Y": matmul_4bit(inputs["X"], inputs["packed"].t(), quant_state=inputs["state"])}
