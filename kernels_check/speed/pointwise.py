"""Rotary embedding of queries and keys, and the gated activations (see ``families``)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from kernels_check import loading
from kernels_check.case import Inputs, Results
from kernels_check.families import geglu, rope, swiglu
from kernels_check.speed.operation import BOTH, FORWARD, ITEM, Implementation, Operation, Shape, normal, with_compile


def operations(shape: Shape) -> list[Operation]:
    """Queries and keys lie as the projections leave them: Unsloth's and Liger's kernels rotate them in place."""
    return [
        _rope(shape),
        _gated("swiglu", shape, silu, "swiglu", ("swiglu_fg_kernel", "swiglu_DWf_DW_dfg_kernel"),
               ("_fg_kernel", "_DWf_DW_dfg_kernel"), swiglu._liger, "_swiglu_{}_kernel(_tiled)?", everywhere=True),
        _gated("geglu_exact", shape, gelu, "geglu", ("geglu_exact_forward_kernel", "geglu_exact_backward_kernel"),
               ("_exact_forward_kernel", "_exact_backward_kernel"), None, "", everywhere=False),
        _gated("geglu_approximate", shape, partial(gelu, approximate="tanh"), "geglu",
               ("geglu_approx_forward_kernel", "geglu_approx_backward_kernel"),
               ("_approx_forward_kernel", "_approx_backward_kernel"), geglu._liger, "_geglu_tanh_{}_kernel",
               everywhere=False),
    ]  # fmt: skip


def _rope(shape: Shape) -> Operation:
    candidates = {
        "unsloth": Implementation(
            call=rope._unsloth, kernels=("_rope_embedding(_QK)?",), backward_kernels=("_rope_embedding(_QK)?",),
            overwrites=("Q", "K"),
        ),
        "liger": Implementation(
            call=rope._liger, kernels=("_triton_rope",), backward_kernels=("_triton_rope",), overwrites=("Q", "K"),
            backward_overwrites=("dQr", "dKr"),
        ),
        "eager": Implementation(call=_rotated),
    }  # fmt: skip
    activation = shape.rows * (shape.heads + shape.kv_heads) * shape.head_dim * ITEM
    tables = shape.length * shape.head_dim * ITEM  # cosines and sines; both halves of each hold the same
    return Operation(
        family="rope", shape=shape.name,
        dims={"rows": shape.rows, "heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim},
        draw=partial(_draw_rope, shape=shape), candidates=with_compile(candidates, shape, everywhere=True),
        gradients=("Q", "K"),
        traffic={FORWARD: 2 * activation + tables, BOTH: 4 * activation + 2 * tables}, flops={FORWARD: 0, BOTH: 0},
    )  # fmt: skip


def _draw_rope(generator: torch.Generator, *, shape: Shape) -> Inputs:
    positions = torch.arange(shape.length, device=generator.device)[:, None]
    frequencies = 500000.0 ** (-torch.arange(0, shape.head_dim, 2, device=generator.device) / shape.head_dim)
    angles = torch.cat([positions * frequencies] * 2, 1)
    inputs: Inputs = {"cos": angles.cos().bfloat16(), "sin": angles.sin().bfloat16(), "positions": None}
    for name, heads in (("Q", shape.heads), ("K", shape.kv_heads)):
        size = (shape.batch, shape.length, heads, shape.head_dim)
        inputs |= {
            name: normal(generator, *size).transpose(1, 2),
            f"d{name}r": normal(generator, *size).transpose(1, 2),
        }
    return inputs


def _rotated(inputs: Inputs) -> Results:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = apply_rotary_pos_emb(inputs["Q"], inputs["K"], inputs["cos"].unsqueeze(0), inputs["sin"].unsqueeze(0))
    return {"Qr": q, "Kr": k}


def _gated(
    family: str, shape: Shape, activation: Callable[[Tensor], Tensor], module: str, functions: tuple[str, str],
    kernels: tuple[str, str], liger: Callable[[Inputs], Results] | None, liger_kernel: str, *, everywhere: bool,
) -> Operation:  # fmt: skip
    candidates = {
        "unsloth": Implementation(
            call=partial(_gated_unsloth, module=module, name=functions[0]),
            both=partial(_gated_unsloth_both, module=module, names=functions),
            kernels=kernels[:1], backward_kernels=kernels[1:], backward_overwrites=("e", "g", "dh"),
        ),
        "eager": Implementation(call=partial(_gated_eager, activation=activation)),
    }  # fmt: skip
    if liger:
        candidates["liger"] = Implementation(
            call=liger, kernels=(liger_kernel.format("forward"),), backward_kernels=(liger_kernel.format("backward"),),
            backward_overwrites=("e", "g"),
        )  # fmt: skip
    elements = shape.rows * shape.inter * ITEM
    return Operation(
        family=family, shape=shape.name, dims={"rows": shape.rows, "inter": shape.inter},
        draw=partial(_draw_gated, shape=shape), candidates=with_compile(candidates, shape, everywhere=everywhere),
        gradients=("e", "g"),
        traffic={FORWARD: 3 * elements, BOTH: 8 * elements},  # e, g to h; with the backward dh, e, g to de, dg
        flops={FORWARD: 0, BOTH: 0},
    )  # fmt: skip


def _draw_gated(generator: torch.Generator, *, shape: Shape) -> Inputs:
    return {name: normal(generator, shape.batch, shape.length, shape.inter) for name in ("e", "g", "dh")}


def _gated_eager(inputs: Inputs, activation: Callable[[Tensor], Tensor]) -> Results:
    return {"h": activation(inputs["e"]) * inputs["g"]}


def _gated_unsloth(inputs: Inputs, module: str, name: str) -> Results:
    return {"h": loading.unsloth(module, name)(inputs["e"], inputs["g"])}


def _gated_unsloth_both(inputs: Inputs, module: str, names: tuple[str, str]) -> Results:
    """As fast_lora calls them: the backward gets dh, e and g as rows and leaves h, dg and de there."""
    forward, backward = loading.unsloth(module, *names)
    with torch.no_grad():
        e, g, dh = (inputs[name].detach() for name in ("e", "g", "dh"))
        h = forward(e, g)
        _, dg, de = backward(*(t.view(-1, t.shape[-1]) for t in (dh, e, g)))
    return {"h": h, "de": de.view(e.shape), "dg": dg.view(e.shape)}
