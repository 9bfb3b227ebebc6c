"""Root-mean-square norm, the sum of two tensors and its norm, layer norm (see ``families``)."""

from functools import partial

import torch

from kernels_check import loading
from kernels_check.case import Inputs, Results
from kernels_check.families import layernorm, rms_layernorm
from kernels_check.speed.operation import BOTH, FORWARD, ITEM, Implementation, Operation, Shape, normal, with_compile

EPS = rms_layernorm.EPS


def operations(shape: Shape) -> list[Operation]:
    """The sum and norm is Unsloth's kernel for generation, forward only; here it gets as many rows as the others."""
    rms = {
        "unsloth": Implementation(
            call=partial(rms_layernorm._unsloth, gemma=False), kernels=("_rms_layernorm_forward(_rows)?",),
            backward_kernels=("_rms_layernorm_backward(_rows)?",),
        ),
        "liger": Implementation(
            call=partial(rms_layernorm._liger, gemma=False), kernels=("_(block_)?rms_norm_forward_kernel",),
            backward_kernels=("_(block_)?rms_norm_backward_kernel",),
        ),
        "eager": Implementation(call=_rms),
    }  # fmt: skip
    add = {
        "unsloth": Implementation(
            call=_add_unsloth, kernels=("_add_rms_layernorm_inference",), overwrites=("X", "residual")
        ),
        "liger": Implementation(call=_add_liger, kernels=("_fused_add_rms_norm_forward_kernel",)),
        "eager": Implementation(call=_add_rms),
    }
    layer = {
        "unsloth": Implementation(
            call=layernorm._unsloth, kernels=("layernorm_forward",), backward_kernels=("layernorm_backward(_dw)?",)
        ),
        "liger": Implementation(
            call=layernorm._liger, kernels=("_layer_norm_forward_kernel",),
            backward_kernels=("_layer_norm_backward_kernel",),
        ),
        "eager": Implementation(call=_layer),
    }  # fmt: skip
    return [
        _operation("rms_layernorm", shape, with_compile(rms, shape, everywhere=True), ("W",)),
        _operation("add_rms_layernorm", shape, with_compile(add, shape, everywhere=False), ("W",)),
        _operation("layernorm", shape, with_compile(layer, shape, everywhere=False), ("W", "b")),
    ]


def _operation(family: str, shape: Shape, candidates: dict[str, Implementation], weights: tuple[str, ...]) -> Operation:
    add = family == "add_rms_layernorm"
    activation, weight = shape.rows * shape.hidden * ITEM, len(weights) * shape.hidden * ITEM
    forward = (4 if add else 2) * activation + weight  # X to Y; with the sum: X and the residual to h and Y
    # again X and W (a bias has no part in dX), and dY to dX
    traffic: dict[str, int] = (
        {FORWARD: forward} if add else {FORWARD: forward, BOTH: forward + 3 * activation + shape.hidden * ITEM}
    )
    return Operation(
        family=family, shape=shape.name, dims={"rows": shape.rows, "hidden": shape.hidden},
        draw=partial(_draw, shape=shape, add=add), candidates=candidates, gradients=() if add else ("X",),
        traffic=traffic, flops=dict.fromkeys(traffic, 0),
    )  # fmt: skip


def _draw(generator: torch.Generator, *, shape: Shape, add: bool) -> Inputs:
    """``norm`` is transformers' module; W is its weight."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    size = (shape.batch, shape.length, shape.hidden)
    norm = LlamaRMSNorm(shape.hidden, EPS)
    norm.weight = torch.nn.Parameter(1 + normal(generator, shape.hidden, scale=0.3), requires_grad=False)
    inputs = {"X": normal(generator, *size), "W": norm.weight, "norm": norm}
    if add:
        return inputs | {"residual": normal(generator, *size)}
    return inputs | {"b": normal(generator, shape.hidden, scale=0.3), "dY": normal(generator, *size)}


def _rms(inputs: Inputs) -> Results:
    return {"Y": inputs["norm"](inputs["X"])}


def _add_rms(inputs: Inputs) -> Results:
    h = inputs["X"] + inputs["residual"]
    return {"Y": inputs["norm"](h), "h": h}


def _add_unsloth(inputs: Inputs) -> Results:
    add = loading.unsloth("fused_add_rms_layernorm", "fast_add_rms_layernorm_inference")
    return {"Y": add(inputs["X"], inputs["residual"], inputs["W"], EPS), "h": inputs["residual"]}


def _add_liger(inputs: Inputs) -> Results:
    function = loading.liger("fused_add_rms_norm", "LigerFusedAddRMSNormFunction")
    y, h = function.apply(inputs["X"], inputs["residual"], inputs["W"], EPS)
    return {"Y": y, "h": h}


def _layer(inputs: Inputs) -> Results:
    x = inputs["X"]
    return {"Y": torch.nn.functional.layer_norm(x, x.shape[-1:], inputs["W"], inputs["b"], layernorm.EPS)}
