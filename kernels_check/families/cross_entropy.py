"""Cross entropy of a row of logits x with label y: loss = log sum_j exp(z_j) - z_y, z = cap tanh(s x / cap) or s x.

Label -100 is ignored: loss and gradient 0. s is Cohere's logit scaling, cap Gemma 2's soft cap. Gradient with p =
softmax(z):

    dx_j = dloss (p_j - [j = y]) s (1 - tanh^2(s x_j / cap))

Sources: Bridle (1990); torch.nn.functional.cross_entropy. Errors: exp(z - m)'s argument is rounded, and so is z after
scaling and tanh, so that exp's relative error is that of |z| + |m|; the sum of exponentials is positive. Hence the
absolute error of the log-sum-exp is (n + |z| + |m|) roundings of size 1, and p_j's the same, relative. Unsloth gets
the label's p_y - 1 as expm1(-loss), whose error is that of the loss times p_y.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import DTYPES, TWO_DTYPES, Candidate, Case, Inputs, Results, expanded_rows, strided
from kernels_check.numerics import Bound

IGNORED = -100
CHUNK = 65536
"""Wider rows are reduced in chunks by Unsloth."""
STEPS = 32
"""float32 roundings of one logit: scaling, tanh and exp (at most 2 ulp each), log, softplus, expm1 and the products."""

LIGER_STRIDED = (
    "liger-kernel 0.8.5 copies logits whose last stride is not 1, asks the copy (made without autograd) whether it "
    "needs a gradient, computes none, and returns logits times incoming gradient as the gradient"
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One kind of input. ``labels`` are put into the first rows; the others are drawn, every fourth one ignored."""

    name: str
    rows: int
    width: int
    cap: float = 0.0
    scaling: float = 0.0
    labels: tuple[int, ...] = ()
    scale: float = 3.0
    layout: str = ""
    special: dict[tuple[int, int], float] = field(default_factory=dict)
    dtypes: tuple[str, ...] = DTYPES
    liger: bool = True


def cases() -> list[Case]:
    """Plain, capped, scaled; narrow, odd and more than 65,536 columns; labels at every edge; confident rows."""
    infinity, nan = float("inf"), float("nan")
    edges = (0, CHUNK - 1, CHUNK, CHUNK + 4, IGNORED)
    variants = [
        Variant(name="plain", rows=9, width=512),
        Variant(name="odd width", rows=7, width=1237),
        Variant(name="one row", rows=1, width=97, labels=(96,)),
        Variant(name="one column", rows=4, width=1, labels=(0, 0, IGNORED, 0)),
        Variant(name="two blocks", rows=3, width=4099, labels=(4095, 4096, 4098)),
        Variant(name="all ignored", rows=5, width=131, labels=(IGNORED,) * 5),
        Variant(name="first and last label", rows=3, width=333, labels=(0, 332, IGNORED)),
        Variant(name="soft cap", rows=6, width=777, cap=30.0, scale=30.0),
        Variant(name="scaling", rows=6, width=777, scaling=0.0625, scale=40.0, liger=False),
        Variant(name="negative scaling", rows=4, width=97, scaling=-0.5, liger=False),
        Variant(name="scaling and soft cap", rows=4, width=501, cap=15.0, scaling=2.0, scale=6.0, liger=False),
        Variant(name="chunked", rows=5, width=CHUNK + 5, labels=edges, dtypes=TWO_DTYPES,
                special={(row, label): 17.0 for row, label in enumerate(edges) if label != IGNORED}),
        Variant(
            name="chunked, scaling and soft cap", rows=5, width=CHUNK + 5, labels=edges, cap=30.0, scaling=-0.5,
            dtypes=("float16",), liger=False,
        ),
        Variant(name="three chunks", rows=1, width=2 * CHUNK + 1, labels=(2 * CHUNK,), dtypes=("bfloat16",)),
        Variant(name="chunked, masked vocabulary", rows=1, width=CHUNK + 5, labels=(7,), dtypes=("bfloat16",),
                special={(0, j): -infinity for j in range(CHUNK, CHUNK + 5)}),
        Variant(name="huge", rows=5, width=211, scale=1000.0),
        Variant(name="confident", rows=4, width=64, labels=(3, 3, 3, 3), scale=0.5,
                special={(row, 3): 12.0 + 4 * row for row in range(4)}),
        Variant(name="strided", rows=5, width=100, layout="strided"),
        Variant(name="expanded gradient", rows=6, width=90, layout="expanded"),
        Variant(name="masked vocabulary", rows=3, width=130, labels=(5, 6, 7),
                special={(row, j): -infinity for row in range(3) for j in range(60, 130)}),
        Variant(name="NaN", rows=3, width=70, labels=(1, 2, 3), special={(1, 9): nan}, liger=False),
    ]  # fmt: skip
    return [_case(variant) for variant in variants]


def _case(variant: Variant) -> Case:
    forward = "_chunked_cross_entropy_forward" if variant.width > CHUNK else "_cross_entropy_forward"
    candidates = {
        "unsloth": Candidate(call=partial(_unsloth, variant=variant), kernels=(forward, "_cross_entropy_backward"))
    }
    if variant.liger:
        candidates["liger"] = Candidate(
            call=partial(_liger, variant=variant),
            kernels=("liger_cross_entropy_kernel",),
            overwrites=("X",),  # it stores the gradient there
            bounds=partial(_liger_bounds, variant=variant),
            known_fault=LIGER_STRIDED if variant.layout == "strided" else None,
        )
    return Case(
        family="cross_entropy",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=partial(_reference, variant=variant),
        bounds=partial(_bounds, variant=variant),
        candidates=candidates,
        gradients=("X",),
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    x = torch.randn((variant.rows, variant.width), generator=generator) * variant.scale
    for place, value in variant.special.items():
        x[place] = value
    labels = torch.randint(0, variant.width, (variant.rows,), generator=generator)
    labels[::4] = IGNORED
    labels[: len(variant.labels)] = torch.tensor(variant.labels, dtype=torch.int64)
    dloss = torch.rand(variant.rows, generator=generator) + 0.5
    x = x.to(dtype)
    return {
        "X": strided(x) if variant.layout == "strided" else x,
        "labels": labels,
        "dloss": expanded_rows(dloss[0], variant.rows) if variant.layout == "expanded" else dloss,
    }


def _logits(x: Tensor, variant: Variant) -> Tensor:
    z = x * variant.scaling if variant.scaling else x
    return variant.cap * torch.tanh(z / variant.cap) if variant.cap else z


def _reference(inputs: Inputs, variant: Variant) -> Results:
    z, labels = _logits(inputs["X"], variant), inputs["labels"]
    at_label = z.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    others = z.scatter(1, labels.clamp(min=0).unsqueeze(1), -torch.inf)
    loss = torch.nn.functional.softplus(torch.logsumexp(others, 1) - at_label, threshold=40.0)
    if variant.width == 1:
        loss = at_label * 0.0  # the only class is certain
    return {"loss": torch.where(labels == IGNORED, 0.0, loss)}


def _bounds(inputs: Inputs, results: Results, variant: Variant, *, separate: bool = False) -> dict[str, Bound]:
    """``separate``: for an algorithm that subtracts z_y from the log-sum-exp, and 1 from p_y, after rounding both."""
    x, labels, width = inputs["X"], inputs["labels"].clamp(min=0).unsqueeze(1), inputs["X"].shape[1]
    z = torch.nan_to_num(_logits(x, variant), nan=0.0, neginf=0.0)
    size = (z.abs() + z.abs().amax(1, keepdim=True) + 1.0).amax(
        1, keepdim=True
    )  # what the roundings of exponents touch
    kept = (inputs["labels"] != IGNORED).double()
    p = torch.softmax(_logits(x, variant), 1)
    at_label = torch.nn.functional.one_hot(labels.squeeze(1), width).bool()
    doubt = torch.where(at_label, 1 - p, p)  # |p - [j = y]|
    doubt_at_label = doubt.gather(1, labels).squeeze(1)
    if separate:
        doubt, doubt_at_label = torch.where(at_label, 1.0, p), torch.ones_like(doubt_at_label)
    slope = torch.full_like(z, abs(variant.scaling or 1.0))
    cancelled = torch.zeros_like(z)
    if variant.cap:
        tanh = torch.tanh(x * (variant.scaling or 1.0) / variant.cap)
        cancelled = slope * tanh.square() * 2  # 1 - tanh^2 has the terms 1 and tanh^2
        slope = slope * (1 - tanh.square())
    incoming = (inputs["dloss"] * kept).unsqueeze(1) * doubt
    loss_parts = ((STEPS, size.squeeze(1) * doubt_at_label * kept), (STEPS, results["loss"].abs()))
    return {
        "loss": Bound(steps=width, magnitude=doubt_at_label * kept, more=loss_parts, dtype=torch.float32),
        "dX": Bound(steps=width, magnitude=incoming * slope, more=((STEPS, incoming * (slope * size + cancelled)),)),
    }


def _liger_bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    """Liger stores losses in the logits' dtype (so that autograd rounds the incoming gradient to it), subtracts from
    the log-sum-exp, and stores the gradient before it is multiplied with the incoming one."""
    bounds = _bounds(inputs, results, variant, separate=True)
    dloss = inputs["dloss"].abs().unsqueeze(1)
    return {
        "loss": replace(bounds["loss"], dtype=None),
        "dX": replace(bounds["dX"], rounded=2 * results["dX"].abs(), spacings=1 + dloss),
    }


def _unsloth(inputs: Inputs, variant: Variant) -> Results:
    function = loading.unsloth("cross_entropy_loss", "Fast_CrossEntropyLoss")
    return {"loss": function.apply(inputs["X"], inputs["labels"], variant.cap, variant.scaling)}


def _liger(inputs: Inputs, variant: Variant) -> Results:
    function = loading.liger("cross_entropy", "LigerCrossEntropyFunction")
    options: list[Any] = [None, IGNORED, 0.0, 0.0, "none", variant.cap or None]
    loss = function.apply(inputs["X"], inputs["labels"], *options)[0]
    return {"loss": loss}
