"""The loss that Unsloth's models return: the sum of the cross entropies of all tokens, divided by the number of the
labelled ones or by a given count (gradient accumulation gives it). Formula and source of one token's: see
``cross_entropy``.

The reference's bounds follow from those of the single losses: their errors add up, and so do the roundings of the sum.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import TWO_DTYPES, Candidate, Case, Inputs, Results, strided
from kernels_check.families import cross_entropy
from kernels_check.numerics import Bound

CHUNKED = cross_entropy.CHUNK + 5


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is drawn, and what the sum is divided by: None for the labelled tokens, else a count."""

    name: str
    tokens: cross_entropy.Variant
    count: int | None = None
    tensor_count: bool = False


def cases() -> list[Case]:
    """With and without a count, soft cap and scaling together, strided logits, all ignored."""
    inner = partial(cross_entropy.Variant, name="", rows=6, width=301, dtypes=TWO_DTYPES)
    ignored = (cross_entropy.IGNORED,) * 6
    return [
        _case(variant)
        for variant in (
            Variant(name="labelled tokens", tokens=inner()),
            Variant(name="given count", tokens=inner(), count=11),
            Variant(name="count as a tensor", tokens=inner(), count=11, tensor_count=True),
            Variant(name="options", tokens=inner(cap=20.0, scaling=0.5), count=4),
            Variant(name="strided", tokens=inner(layout="strided")),
            Variant(name="all ignored", tokens=inner(labels=ignored)),
            Variant(name="all ignored, count of zero", tokens=inner(labels=ignored), count=0, tensor_count=True),
            Variant(name="chunked", tokens=inner(rows=2, width=CHUNKED, labels=(CHUNKED - 1, 3))),
        )
    ]


def _case(variant: Variant) -> Case:
    forward = "_chunked_cross_entropy_forward" if variant.tokens.width == CHUNKED else "_cross_entropy_forward"
    return Case(
        family="mean_cross_entropy",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=partial(_reference, variant=variant),
        bounds=partial(_bounds, variant=variant),
        candidates={
            "unsloth": Candidate(call=partial(_unsloth, variant=variant), kernels=(forward, "_cross_entropy_backward"))
        },
        gradients=("X",),
        dtypes=variant.tokens.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    inputs = cross_entropy._draw(generator, dtype, variant=variant.tokens)
    x, labels = inputs["X"].contiguous().unflatten(0, (2, -1)), inputs["labels"].unflatten(0, (2, -1))
    return {
        "X": strided(x) if variant.tokens.layout == "strided" else x,
        "labels": labels,
        "count": torch.tensor(variant.count) if variant.tensor_count else variant.count,
        "dloss": torch.rand((), generator=generator) + 0.5,
    }


def _divisor(inputs: Inputs) -> Tensor | float:
    labelled = (inputs["labels"] != cross_entropy.IGNORED).sum()
    count = labelled if inputs["count"] is None else torch.as_tensor(inputs["count"])
    return count.clamp(min=1).double()  # nothing labelled: loss 0


def _tokens(inputs: Inputs) -> Inputs:
    """The inputs of ``cross_entropy``."""
    labels = inputs["labels"].flatten()
    dloss = (inputs["dloss"] / _divisor(inputs)).expand(len(labels))
    return {"X": inputs["X"].flatten(0, 1), "labels": labels, "dloss": dloss}


def _reference(inputs: Inputs, variant: Variant) -> Results:
    losses = cross_entropy._reference(_tokens(inputs), variant.tokens)["loss"]
    return {"loss": losses.sum() / _divisor(inputs)}


def _bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    tokens, divisor = _tokens(inputs), _divisor(inputs)
    losses = cross_entropy._reference(tokens, variant.tokens)
    single = cross_entropy._bounds(tokens, losses | {"dX": results["dX"].flatten(0, 1)}, variant.tokens)
    loss, dx = single["loss"], single["dX"]

    def added(part: Tensor | None) -> Tensor:
        assert part is not None
        return part.abs().sum() / divisor

    def shaped(part: Tensor | None) -> Tensor:
        assert part is not None
        return part.unflatten(0, inputs["X"].shape[:2])

    sums = (len(tokens["labels"]) + 2, added(losses["loss"]))
    return {
        "loss": Bound(
            steps=loss.steps, magnitude=added(loss.magnitude), more=(*((n, added(m)) for n, m in loss.more), sums),
            dtype=loss.dtype,
        ),
        "dX": Bound(
            steps=dx.steps + 1, magnitude=shaped(dx.magnitude), more=tuple((n, shaped(m)) for n, m in dx.more)
        ),
    }  # fmt: skip


def _unsloth(inputs: Inputs, variant: Variant) -> Results:
    function = loading.unsloth("cross_entropy_loss", "fast_cross_entropy_loss")
    options = variant.tokens.cap, variant.tokens.scaling, inputs["count"]
    return {"loss": function(inputs["X"], inputs["labels"], *options)}
