"""Output projection and cross entropy in one function that never holds all logits: the mean, over labelled tokens or a
given count, of the losses of z = x W^T + b (see ``cross_entropy`` for scaling s, soft cap and ignored labels).

    dx = dloss / n sum_j dz_j W_j,    dW = dloss / n sum over tokens of dz x^T

Source: torch.nn.functional.cross_entropy of torch.nn.functional.linear. Labels are shifted by one: a token predicts the
next. Off CUDA the logits are stored in the storage dtype, on CUDA in float32; their gradient is stored, the products
too, and then multiplied with dloss.
"""

import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import DTYPES, TWO_DTYPES, Candidate, Case, Inputs, Results
from kernels_check.families import simulated
from kernels_check.families.simulated import Rounding
from kernels_check.numerics import Bound

IGNORED = -100
STEPS = 40
"""float32 roundings of a logit's probability beside the reduction's: scaling, tanh, exp (2 ulp each), the quotient."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Sizes and options. ``count``: the number that divides the sum in place of that of the labelled tokens."""

    name: str
    shape: tuple[int, int] = (2, 5)
    hidden: int = 24
    vocabulary: int = 301
    bias: bool = False
    cap: float = 0.0
    scaling: float = 0.0
    count: int | None = None
    trained_head: bool = True
    all_ignored: bool = False
    confident: bool = False
    dtypes: tuple[str, ...] = DTYPES


def cases() -> list[Case]:
    """Odd vocabularies, one token, frozen and trained heads, options, several splits of the vocabulary."""
    variants = [
        Variant(name="plain"),
        Variant(name="frozen head", trained_head=False, vocabulary=4099, shape=(1, 4), dtypes=TWO_DTYPES),
        Variant(name="one labelled token", shape=(1, 2), vocabulary=97, dtypes=TWO_DTYPES),
        Variant(name="given count", count=7, dtypes=TWO_DTYPES),
        Variant(name="bias", bias=True, dtypes=TWO_DTYPES),
        Variant(name="soft cap", cap=3.0, dtypes=TWO_DTYPES),
        Variant(name="scaling and soft cap", cap=4.0, scaling=0.25, dtypes=TWO_DTYPES),
        Variant(name="all ignored", all_ignored=True, dtypes=TWO_DTYPES),
        Variant(name="confident", confident=True, vocabulary=64, dtypes=TWO_DTYPES),
        Variant(name="four splits", vocabulary=3 * 16384 + 5, shape=(1, 3), hidden=8, trained_head=False,
                dtypes=("bfloat16",)),
    ]  # fmt: skip
    return [_case(variant) for variant in variants]


def _case(variant: Variant) -> Case:
    wide = variant.vocabulary > 2 * 16384
    unsloth = ("_fl_partial_kernel", "_fl_combine_kernel") if wide else ("_fl_forward_kernel",)
    unsloth = () if variant.all_ignored else (*unsloth, "_fl_backward_kernel")
    candidates = {"unsloth": Candidate(call=partial(_unsloth, variant=variant), kernels=unsloth)}
    if variant.name in ("soft cap", "confident"):  # slow in the interpreter
        candidates["liger"] = Candidate(
            call=partial(_liger, variant=variant),
            kernels=("liger_cross_entropy_kernel",),
            bounds=partial(_bounds, variant=variant, liger=True),
        )
    trained = ("W", "b") if variant.bias else ("W",)
    return Case(
        family="linear_cross_entropy",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=partial(_reference, variant=variant),
        bounds=partial(_bounds, variant=variant),
        candidates=candidates,
        gradients=("X", *(trained if variant.trained_head else ())),
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    labels = torch.randint(0, variant.vocabulary, variant.shape, generator=generator)
    labels[:, 3::4] = IGNORED
    weight = normal(variant.vocabulary, variant.hidden) / variant.hidden**0.5 * 2
    x = normal(*variant.shape, variant.hidden)
    if variant.confident:
        x[:, :-1] = weight[labels[:, 1:].clamp(min=0)] * 6.0  # the label's logit lies far above the others
    if variant.all_ignored:
        labels[:] = IGNORED
    labels[0, -1] = IGNORED if variant.all_ignored else variant.vocabulary - 1
    return {
        "X": x.to(dtype),
        "W": weight.to(dtype),
        "b": normal(variant.vocabulary).to(dtype) if variant.bias else None,
        "labels": labels,
        "dloss": torch.rand((), generator=generator) + 0.5,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _shifted(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Rows of X, without each sequence's last, and their labels."""
    return inputs["X"][:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()


def _transformed(z: Tensor, variant: Variant) -> Tensor:
    z = z * variant.scaling if variant.scaling else z
    return variant.cap * torch.tanh(z / variant.cap) if variant.cap else z


def _losses(z: Tensor, labels: Tensor) -> Tensor:
    """Losses without cancellation where the label is certain."""
    at = labels.clamp(min=0).unsqueeze(1)
    others = z.scatter(1, at, -torch.inf).logsumexp(1)
    losses = torch.nn.functional.softplus(others - z.gather(1, at).squeeze(1), threshold=40.0)
    return torch.where(labels == IGNORED, 0.0, losses)


def _count(labels: Tensor, variant: Variant) -> Any:
    return variant.count or (labels != IGNORED).sum().clamp(min=1)


def _reference(inputs: Inputs, variant: Variant) -> Results:
    x, labels = _shifted(inputs)
    z = x @ inputs["W"].T + (0.0 if inputs["b"] is None else inputs["b"])
    return {"loss": _losses(_transformed(z, variant), labels).sum() / _count(labels, variant)}


def _bounds(inputs: Inputs, results: Results, variant: Variant, *, liger: bool = False) -> dict[str, Bound]:
    """``liger``: the loss cancels, the soft cap's logits are stored, and dW is stored after every token at worst."""
    (x, labels), w, width = _shifted(inputs), inputs["W"], variant.vocabulary
    bias = 0.0 if inputs["b"] is None else inputs["b"]
    kept, factor = (labels != IGNORED).double().unsqueeze(1), inputs["dloss"] / _count(labels, variant)
    at_label = torch.nn.functional.one_hot(labels.clamp(min=0), width).bool()

    def algorithm(r: Rounding) -> Results:
        z = r(r.product(x, w.T) + bias)
        t = _transformed(z, variant)
        losses = _losses(t, labels)
        size = t.abs() + t.abs().amax(1, keepdim=True) + 1
        p = torch.softmax(t, 1)
        doubt = torch.where(at_label, -torch.expm1(-losses).unsqueeze(1), p)
        slope = torch.ones_like(z) * (variant.scaling or 1.0)
        cancelled = torch.zeros_like(z)
        if variant.cap:
            tanh = t / variant.cap
            slope, cancelled = slope * (1 - tanh.square()), 2 * slope.abs() * tanh.square()
        signed = torch.where(at_label, -doubt, p)
        uncertain = torch.ones_like(doubt).where(at_label, p) if liger else doubt
        terms = uncertain * (slope.abs() * size + cancelled)
        dz = r(kept * signed * slope * factor, width + STEPS, kept * terms * factor)
        dz = r(dz) if liger else dz
        sizes = size.amax(1) * (1.0 if liger else doubt.where(at_label, 0.0).sum(1))
        losses = r(losses, width + STEPS, sizes, stored=False) * kept.squeeze(1)
        made = {"loss": r(losses.sum() / _count(labels, variant), len(x), losses.abs().mean(), stored=False)}
        dx = r(r.product(dz, w))
        made["dX"] = torch.nn.functional.pad(dx.unflatten(0, inputs["X"][:, :-1].shape[:2]), (0, 0, 0, 1))
        if "dW" in results:
            made["dW"] = r(_summed(dz, x, r) if liger else r.product(dz.mT, x))
        if "db" in results:
            made["db"] = r(dz.sum(0), len(x), dz.abs().sum(0))
        return made

    runs = 24 if width > 10000 else 128
    return simulated.bounds(algorithm, getattr(torch, inputs["dtype"]), results, float32=("loss",), runs=runs)


def _summed(dz: Tensor, x: Tensor, r: Rounding) -> Tensor:
    total = torch.zeros_like(dz.mT @ x)
    for row in range(len(x)):
        total = r(total + dz[row].unsqueeze(1) * x[row])
    return total


def _unsloth(inputs: Inputs, variant: Variant) -> Results:
    on_cpu = inputs["X"].device.type == "cpu"
    fused = _fused_module(on_cpu)
    function = loading.unsloth_zoo("fused_losses.cross_entropy_loss", "unsloth_fused_ce_loss")
    options = {"logit_softcapping": variant.cap, "logit_scale_multiply": variant.scaling}
    forced = patch.object(fused, "_use_triton", lambda device: True) if on_cpu else nullcontext()
    with forced:
        loss = function(
            None, inputs["X"], inputs["W"], inputs["b"], inputs["labels"], n_items=variant.count,
            **{name: value for name, value in options.items() if value},
        )  # fmt: skip
    return {"loss": loss}


def _fused_module(on_cpu: bool) -> Any:
    """The module with the kernels. It leaves them out where it sees the interpreter, and keeps them for CUDA: on a CPU
    the variable that it reads is hidden while it is imported."""
    if not on_cpu:
        return loading.unsloth_zoo("fused_losses.fused_linear")
    from triton import knobs

    with patch.object(knobs.runtime, "interpret", True), patch.dict(os.environ, {"TRITON_INTERPRET": "0"}):
        return loading.unsloth_zoo("fused_losses.fused_linear")


def _liger(inputs: Inputs, variant: Variant) -> Results:
    function = loading.liger("fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction")
    x, labels = _shifted(inputs)
    options = (None, IGNORED, 0.0, 0.0, "mean", variant.cap or None)
    loss = function.apply(x, inputs["W"], labels, inputs["b"], *options)
    return {"loss": loss[0] if isinstance(loss, tuple) else loss}
