"""Cross entropy of given logits, and the output projection with its cross entropy in one function (see ``families``).

Both are the mean over all labelled tokens, as training asks for it; nothing but the logits or the hidden states gets a
gradient.
"""

from functools import partial

import torch

from kernels_check import loading
from kernels_check.case import Inputs, Results
from kernels_check.speed.operation import BOTH, FORWARD, ITEM, Implementation, Operation, Shape, normal, with_compile

LABEL = 8
"""Bytes of a label."""
LOSS = 4
IGNORED = -100
WIDE = 65536
"""Wider rows are reduced in chunks by Unsloth."""


def cross_entropy(shape: Shape, vocabulary: int) -> Operation:
    """Rows of logits; the model's layers play no part, so ``shape`` gives the number of rows alone."""
    forward = "_chunked_cross_entropy_forward" if vocabulary > WIDE else "_cross_entropy_forward"
    candidates = {
        "unsloth": Implementation(call=_unsloth, kernels=(forward,), backward_kernels=("_cross_entropy_backward",)),
        "liger": Implementation(
            call=_liger, kernels=("liger_cross_entropy_kernel",), backward_overwrites=("X",)
        ),  # it stores the gradient there, in the forward
        "eager": Implementation(call=_eager),
    }
    logits, labels = shape.rows * vocabulary * ITEM, shape.rows * LABEL
    return Operation(
        family="cross_entropy", shape=f"vocabulary-{vocabulary}", dims={"rows": shape.rows, "vocabulary": vocabulary},
        draw=partial(_draw, shape=shape, vocabulary=vocabulary),
        candidates=with_compile(candidates, shape, everywhere=True), gradients=("X",),
        # logits to the loss; the gradient's factor is known to be 1 / n, so that one pass may write it too
        traffic={FORWARD: logits + labels + LOSS, BOTH: 2 * logits + labels + 2 * LOSS}, flops={FORWARD: 0, BOTH: 0},
    )  # fmt: skip


def _draw(generator: torch.Generator, *, shape: Shape, vocabulary: int) -> Inputs:
    x = normal(generator, shape.batch, shape.length, vocabulary, scale=3.0)
    return {"X": x, **_targets(generator, shape, vocabulary)}


def _targets(generator: torch.Generator, shape: Shape, vocabulary: int) -> Inputs:
    size, device = (shape.batch, shape.length), generator.device
    labels = torch.randint(0, vocabulary, size, generator=generator, device=device)
    return {"labels": labels, "dloss": torch.ones((), device=device)}


def _eager(inputs: Inputs) -> Results:
    """As transformers' loss function: logits are widened to float32."""
    logits, labels = inputs["X"].float(), inputs["labels"]
    return {"loss": torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))}


def _unsloth(inputs: Inputs) -> Results:
    return {"loss": loading.unsloth("cross_entropy_loss", "fast_cross_entropy_loss")(inputs["X"], inputs["labels"])}


def _liger(inputs: Inputs) -> Results:
    function, x = loading.liger("cross_entropy", "LigerCrossEntropyFunction"), inputs["X"]
    options = (None, IGNORED, 0.0, 0.0, "mean", None)
    return {"loss": function.apply(x.view(-1, x.shape[-1]), inputs["labels"].view(-1), *options)[0]}


def linear_cross_entropy(shape: Shape) -> Operation:
    """Hidden states and a frozen head."""
    candidates = {
        "unsloth": Implementation(call=_linear_unsloth, kernels=("_fl_.*",)),
        "liger": Implementation(call=_linear_liger, kernels=("liger_cross_entropy_kernel",)),
        "eager": Implementation(call=_linear_eager),
    }
    rows, labels = shape.rows * shape.hidden * ITEM, shape.rows * LABEL
    head = shape.vocabulary * shape.hidden * ITEM
    product = 2 * shape.batch * (shape.length - 1) * shape.vocabulary * shape.hidden  # the last token predicts nothing
    return Operation(
        family="linear_cross_entropy", shape=shape.name,
        dims={"rows": shape.rows, "hidden": shape.hidden, "vocabulary": shape.vocabulary},
        draw=partial(_draw_linear, shape=shape), candidates=with_compile(candidates, shape, everywhere=False),
        gradients=("X",),
        # hidden states, head and labels to the loss, and in the same pass to dX
        traffic={FORWARD: rows + head + labels + LOSS, BOTH: 2 * rows + head + labels + 2 * LOSS},
        flops={FORWARD: product, BOTH: 2 * product},
    )  # fmt: skip


def _draw_linear(generator: torch.Generator, *, shape: Shape) -> Inputs:
    x = normal(generator, shape.batch, shape.length, shape.hidden)
    head = normal(generator, shape.vocabulary, shape.hidden, scale=2 / shape.hidden**0.5)
    return {"X": x, "W": head, **_targets(generator, shape, shape.vocabulary)}


def _linear_eager(inputs: Inputs) -> Results:
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits = torch.nn.functional.linear(inputs["X"], inputs["W"])
    return {"loss": ForCausalLMLoss(logits=logits, labels=inputs["labels"], vocab_size=inputs["W"].shape[0])}


def _linear_unsloth(inputs: Inputs) -> Results:
    function = loading.unsloth_zoo("fused_losses.cross_entropy_loss", "unsloth_fused_ce_loss")
    return {"loss": function(None, inputs["X"], inputs["W"], None, inputs["labels"])}


def _linear_liger(inputs: Inputs) -> Results:
    """As Liger's own patch of transformers: labels are shifted, hidden states are not."""
    function = loading.liger("fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction")
    shifted = torch.nn.functional.pad(inputs["labels"], (0, 1), value=IGNORED)[:, 1:].reshape(-1)
    loss = function.apply(inputs["X"].view(-1, inputs["X"].shape[-1]), inputs["W"], shifted, None)
    return {"loss": loss[0] if isinstance(loss, tuple) else loss}
