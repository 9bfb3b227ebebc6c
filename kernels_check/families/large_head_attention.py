"""Attention for heads too wide for other kernels: o = softmax(q k^T / sqrt(width)) v, where a query sees the keys from
lo to hi.

Source: Vaswani et al. (2017); Dao, FlashAttention-2 (2023), whose backward pass it follows with D = sum(o do):

    dv = p^T do,    ds = p (do v^T - D),    dq = ds k / sqrt(width),    dk = ds^T q / sqrt(width)

p and ds are rounded to the storage dtype before they are multiplied, and D is taken from the stored o. Queries may have
several heads for one of the keys. Models' heads are 512 wide. The settings that tuning would choose from are taken in
turn, one a case: tuning compiles all of them for every case.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import Candidate, Case, Inputs, Results
from kernels_check.families import simulated
from kernels_check.families.simulated import Rounding
from kernels_check.numerics import Bound

STEPS = 12
"""float32 roundings in a probability: the scaled exponent, its difference, exp2 (2 ulp), rescaling and the quotient."""
KERNELS = ("_lh_fwd", "_lh_bwd_pre", "_lh_bwd_dq", "_lh_bwd_dkdv")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Sizes; ``window`` limits how many keys a query sees, 0 is all before it; ``lengths`` packs sequences."""

    name: str
    heads: tuple[int, int] = (2, 1)
    length: int = 37
    width: int = 64
    window: int = 0
    causal: bool = True
    packed: tuple[int, ...] = ()
    setting: int = 0
    dtypes: tuple[str, ...] = ("bfloat16",)
    """float32 is left out: Unsloth takes the kernel for 16-bit models, and a GPU's products would be TF32."""


def cases() -> list[Case]:
    """Lengths that end within a block, one token, windows, packed sequences, grouped heads."""
    variants = [
        Variant(name="causal", dtypes=("float16", "bfloat16")),
        Variant(name="not causal", causal=False, length=33, heads=(1, 1), setting=1),
        Variant(name="one token", length=1, setting=2),
        Variant(name="window", window=7, heads=(3, 1), setting=3, dtypes=("float16",)),
        Variant(name="packed sequences", packed=(5, 20, 14), length=39, heads=(2, 2), setting=2),
        Variant(name="wide head", width=512, length=18),
    ]
    return [_case(variant) for variant in variants]


def _case(variant: Variant) -> Case:
    return Case(
        family="large_head_attention",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=_reference,
        bounds=_bounds,
        candidates={"unsloth": Candidate(call=partial(_unsloth, setting=variant.setting), kernels=KERNELS)},
        gradients=("Q", "K", "V"),
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    def normal(heads: int) -> Tensor:
        """[batch, heads, length, width], as a transposed projection lies in memory."""
        shape = (2, variant.length, heads, variant.width)
        return torch.randn(shape, generator=generator).to(dtype).transpose(1, 2)

    position = torch.arange(variant.length, dtype=torch.int32)
    low, high = torch.zeros_like(position), position if variant.causal else position * 0 + variant.length - 1
    if variant.window:
        low = (position - variant.window + 1).clamp(min=0)
    if variant.packed:
        lengths = torch.tensor(variant.packed)
        low = (lengths.cumsum(0) - lengths).repeat_interleave(lengths).int()
    queries, keys = variant.heads
    inputs: Inputs = {"Q": normal(queries), "K": normal(keys), "V": normal(keys)}
    inputs["dO"] = normal(queries).transpose(1, 2).contiguous()
    return inputs | {
        "low": low.expand(2, -1).contiguous(),
        "high": high.expand(2, -1).contiguous(),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _reference(inputs: Inputs) -> Results:
    return {"O": _forward(inputs, Rounding(None))[0].transpose(1, 2)}


def _forward(inputs: Inputs, r: Rounding) -> tuple[Tensor, Tensor]:
    """o and the probabilities, [batch, heads, length, width or length]."""
    q, k, v = (inputs[name] for name in "QKV")
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    key = torch.arange(q.shape[2])
    seen = (key >= inputs["low"][:, None, :, None]) & (key <= inputs["high"][:, None, :, None])
    s = r.product(q, k.mT, stored=False) * q.shape[-1] ** -0.5
    s = r(s, STEPS, s.abs() + s.abs().amax(-1, keepdim=True) + 1, stored=False).where(seen, -torch.inf)
    p = torch.softmax(s, -1)
    return r.product(r(p), v, stored=False), p


def _bounds(inputs: Inputs, results: Results) -> dict[str, Bound]:
    q, k, v = (inputs[name] for name in "QKV")
    do, scale, heads = inputs["dO"].transpose(1, 2), q.shape[-1] ** -0.5, k.shape[1]

    def summed(gradient: Tensor) -> Tensor:
        return gradient.unflatten(1, (heads, -1)).sum(2)

    def algorithm(r: Rounding) -> Results:
        o, p = _forward(inputs, r)
        wide_k, wide_v = (t.repeat_interleave(q.shape[1] // heads, 1) for t in (k, v))
        stored = r(o)
        d = r((stored * do).sum(-1, keepdim=True), q.shape[-1], (stored * do).abs().sum(-1, keepdim=True), stored=False)
        dp = r.product(do, wide_v.mT, stored=False)
        ds = r(r(p * (dp - d), STEPS, p * (dp.abs() + d.abs()), stored=False))
        return {
            "O": o.transpose(1, 2),
            "dQ": scale * r.product(ds, wide_k, stored=False),
            "dK": scale * summed(r.product(ds.mT, q, stored=False)),
            "dV": summed(r.product(r(p).mT, do, stored=False)),
        }

    return simulated.bounds(algorithm, getattr(torch, inputs["dtype"]), results, runs=64)


def _unsloth(inputs: Inputs, setting: int) -> Results:
    module, names = loading.unsloth("large_head_attention"), ("Q", "K", "V")
    with ExitStack() as stack:
        for kernel in (module._lh_fwd, module._lh_bwd_dq, module._lh_bwd_dkdv):
            stack.enter_context(patch.object(kernel, "configs", kernel.configs[setting : setting + 1]))
        o = module.large_head_attention(*(inputs[name] for name in (*names, "low", "high")))
        gradients = torch.autograd.grad(o, [inputs[name] for name in names], inputs["dO"])
    return {"O": o} | {f"d{name}": gradient for name, gradient in zip(names, gradients, strict=True)}
