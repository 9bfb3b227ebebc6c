"""Attention with a sink, by PyTorch's flex attention: o = softmax([q k^T / sqrt(width), sink])[keys] v, where a query
sees the keys before it, or the last ``window`` of them.

Source: Xiao et al., Efficient Streaming Language Models with Attention Sinks (2024); gpt-oss. PyTorch's Inductor
generates the kernel from Unsloth's mask; Unsloth multiplies its output a by g = sigmoid(logsumexp - sink):

    o = a g,    da = do g,    dz = sum(do a) g (1 - g),    dsink = -sum(dz)
    ds = p (da v^T - sum(a da) + dz),    dq = ds k / sqrt(width),    dk = ds^T q / sqrt(width),    dv = p^T da

a, g, do a and its sum, da, p and ds are rounded to the storage dtype. Inductor allocates its outputs itself, so that
they are not poisoned. Without sinks, Unsloth only hands PyTorch's function to transformers.
"""

import os
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import Candidate, Case, Inputs, Results
from kernels_check.families import simulated
from kernels_check.families.large_head_attention import STEPS
from kernels_check.families.simulated import Rounding
from kernels_check.numerics import Bound

CPU_REASON = "PyTorch's compiler generates this kernel for a GPU; on a CPU it is another one"
GENERATED = "triton_tem_fused.*"
"""Inductor's name for a kernel made from a template."""

if os.environ.get("TRITON_INTERPRET") != "1":
    import torch._inductor.config
    import torch._inductor.runtime.triton_heuristics  # launches.py watches it where it is imported

    torch._inductor.config.compile_threads = 1  # in this process: a pool of others would have to import torch first


@dataclass(frozen=True, kw_only=True)
class Variant:
    """``window``: how many keys a query sees, 0 is all before it."""

    name: str
    length: int
    window: int = 0
    heads: tuple[int, int] = (2, 1)
    width: int = 64
    dtype: str = "bfloat16"


def cases() -> list[Case]:
    """Few, since each is compiled anew: more than one block of 128, one that ends early, a window, grouped heads."""
    variants = [
        Variant(name="causal", length=140),
        Variant(name="window", length=140, window=50),
        Variant(name="within a block", length=77, heads=(3, 1), dtype="float16"),
    ]
    return [_case(variant) for variant in variants]


def _case(variant: Variant) -> Case:
    return Case(
        family="flex_attention",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=partial(_reference, variant=variant),
        bounds=partial(_bounds, variant=variant),
        candidates={
            "unsloth": Candidate(call=partial(_unsloth, variant=variant), kernels=(GENERATED,), cpu_reason=CPU_REASON)
        },
        gradients=("Q", "K", "V", "S"),
        dtypes=(variant.dtype,),
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    queries, keys = variant.heads
    shape = (variant.length, variant.width)
    inputs: Inputs = {"Q": normal(1, queries, *shape), "K": normal(1, keys, *shape), "V": normal(1, keys, *shape)}
    return inputs | {"S": normal(queries), "dO": normal(1, variant.length, queries, variant.width)}


def _seen(variant: Variant) -> Tensor:
    place = torch.arange(variant.length)
    before = place[:, None] - place
    return (before >= 0) & (before < (variant.window or variant.length))


def _wide(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with a key head for every query head."""
    q, k, v = (inputs[name] for name in "QKV")
    groups = q.shape[1] // k.shape[1]
    return q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)


def _reference(inputs: Inputs, variant: Variant) -> Results:
    """With the sink as one more column of the softmax."""
    q, k, v = _wide(inputs)
    scores = (q @ k.mT * variant.width**-0.5).where(_seen(variant), -torch.inf)
    sink = inputs["S"][:, None, None].expand(*scores.shape[:-1], 1)
    p = torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1]
    return {"O": (p @ v).transpose(1, 2)}


def _algorithm(inputs: Inputs, variant: Variant, r: Rounding) -> Results:
    """What Unsloth and the generated kernels compute, with every rounding."""
    q, k, v = _wide(inputs)
    do, scale, heads = inputs["dO"].transpose(1, 2), variant.width**-0.5, variant.heads[1]

    def summed(gradient: Tensor) -> Tensor:
        return gradient.unflatten(1, (heads, -1)).sum(2)

    s = r.product(q, k.mT, stored=False) * scale
    s = r(s, STEPS, s.abs() + s.abs().amax(-1, keepdim=True) + 1, stored=False).where(_seen(variant), -torch.inf)
    lse = torch.logsumexp(s, -1, keepdim=True)
    lse = r(lse, STEPS, lse.abs() + 1, stored=False)
    p = torch.exp(s - lse)
    a = r(r.product(r(p), v, stored=False))
    exact_g = r(torch.sigmoid(lse - inputs["S"][:, None, None]), STEPS, stored=False)
    g = r(exact_g)
    da, products = r(do * g), r(do * a)
    dg = r(products.sum(-1, keepdim=True), variant.width, products.abs().sum(-1, keepdim=True))
    dz = r(dg * exact_g * (1 - exact_g), STEPS, stored=False)
    delta = r((a * da).sum(-1, keepdim=True), variant.width, (a * da).abs().sum(-1, keepdim=True), stored=False) - dz
    dp = r.product(da, v.mT, stored=False)
    ds = r(r(p * (dp - delta), STEPS, p * (dp.abs() + delta.abs()), stored=False))
    return {
        "O": (a * g).transpose(1, 2),
        "dQ": scale * r.product(ds, k, stored=False),
        "dK": scale * summed(r.product(ds.mT, q, stored=False)),
        "dV": summed(r.product(r(p).mT, da, stored=False)),
        "dS": -r(dz.sum((0, 2, 3)), variant.length, dz.abs().sum((0, 2, 3)), stored=False),
    }


def _bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    run = partial(_algorithm, inputs, variant)
    return simulated.bounds(run, getattr(torch, variant.dtype), results, runs=64)


def _unsloth(inputs: Inputs, variant: Variant) -> Results:
    has, attend = loading.unsloth_zoo("flex_attention", "HAS_FLEX_ATTENTION", "flex_attention_with_sink")
    if not has:
        raise loading.Missing("unsloth_zoo found no flex attention, or could not read this GPU's memory size")
    layer = SimpleNamespace(
        sinks=inputs["S"], num_key_value_groups=variant.heads[0] // variant.heads[1], scaling=variant.width**-0.5,
        sliding_window=variant.window or None, training=True,
    )  # fmt: skip
    return {"O": attend(layer, inputs["Q"], inputs["K"], inputs["V"])}
