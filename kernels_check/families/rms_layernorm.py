"""RMS layer norm: Llama's (y = round(x r) w) and Gemma's (y = x r (1 + w)), with r = 1 / sqrt(mean(x^2) + eps).

Sources: Zhang and Sennrich, Root Mean Square Layer Normalization (2019); transformers' LlamaRMSNorm, which rounds x r
to the storage dtype before it multiplies with w, and GemmaRMSNorm, which does not. Gradients with g = dy w, n = x r:

    dx = r (g - n mean(g n)),    dw = sum over rows of dy n
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import Candidate, Case, Inputs, Results
from kernels_check.families.norm_inputs import Variant, variants
from kernels_check.numerics import Bound, rounded_sum

EPS = 1e-5


def cases() -> list[Case]:
    """Both norms on every kind of input; narrow rows also through the kernels that take several rows a program; once
    with two programs for all rows, so that each adds up many rows' share of dw."""
    made = []
    for gemma in (False, True):
        for variant in variants():
            if not (gemma and variant.name == "many rows"):  # the same backward kernel; slow in the interpreter
                made.append(_case(variant, gemma))
    few = Variant(name="few programs", shape=(257, 100), dtypes=("bfloat16",))
    return [*made, _case(few, gemma=False)]


def _case(variant: Variant, gemma: bool) -> Case:
    gradients = ("X",) if variant.frozen else ("X", "W")
    some_rows = ("_(gemma_)?rms_layernorm_forward(_rows)?", "_rms_layernorm_backward(_rows)?")
    candidates = {
        "unsloth": Candidate(call=partial(_unsloth, gemma=gemma), kernels=some_rows),
        "liger": Candidate(
            call=partial(_liger, gemma=gemma),
            kernels=(
                "_(block_)?rms_norm_forward_kernel",
                "_(block_)?rms_norm_backward_kernel",
            ),
            bounds=partial(_liger_bounds, gemma=gemma),
        ),
    }
    if variant.name in ("many rows", "few programs"):  # slow in the interpreter
        del candidates["liger"]
    if 33 <= variant.shape[-1] <= 128:
        candidates["unsloth rows"] = Candidate(
            call=partial(_unsloth_rows, gemma=gemma, train_w="W" in gradients),
            kernels=("_rms_layernorm_forward_rows", "_rms_layernorm_backward_rows"),
        )
    if variant.name == "few programs":
        for name, candidate in candidates.items():
            candidates[name] = replace(candidate, call=partial(_few_programs, call=candidate.call))
    return Case(
        family="rms_layernorm",
        name=f"{'gemma' if gemma else 'llama'}, {variant.name}",
        draw=partial(_draw, variant=variant, gemma=gemma),
        reference=partial(_reference, gemma=gemma),
        bounds=partial(_bounds, gemma=gemma),
        candidates=candidates,
        gradients=gradients,
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant, gemma: bool) -> Inputs:
    inputs = variant.draw(generator, dtype, weight_mean=0.0 if gemma else 1.0)
    del inputs["b"]
    return inputs


def _reference(inputs: Inputs, gemma: bool) -> Results:
    x, w = inputs["X"], inputs["W"]
    r = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return {"Y": x * r * (1 + w if gemma else w)}


def _bounds(inputs: Inputs, results: Results, gemma: bool) -> dict[str, Bound]:
    x, w, width = inputs["X"], inputs["W"], inputs["X"].shape[-1]
    r = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
    n, weight = (x * r).abs(), 1 + w.abs() if gemma else w.abs()
    y = results["Y"].abs()
    bounds = {
        "Y": Bound(
            steps=width + 8,
            magnitude=n * weight,
            rounded=None if gemma else y,  # x r is rounded before it is multiplied
            spacings=1.0 if gemma else 1.0 + weight,
        )
    }
    if "dX" in results:
        g = inputs["dY"].abs() * weight
        bounds["dX"] = Bound(steps=2 * width + 16, magnitude=r * (g + n * (g * n).mean(-1, keepdim=True)))
    if "dW" in results:
        terms = (inputs["dY"].abs() * n).reshape(-1, width)
        bounds["dW"] = Bound(
            steps=len(terms) + width + 8,
            magnitude=terms.sum(0),
            rounded=None if gemma else rounded_sum(terms, 0, width),  # the n that the forward rounded
            spacings=1.0 if gemma else 1.0 + inputs["dY"].abs().reshape(-1, width).sum(0),
        )
    return bounds


def _liger_bounds(inputs: Inputs, results: Results, gemma: bool) -> dict[str, Bound]:
    """Liger multiplies dy with n in the storage dtype, as autograd does in transformers: one rounding more for dw."""
    bounds = _bounds(inputs, results, gemma)
    if "dW" in bounds and bounds["dW"].rounded is not None:
        bounds["dW"] = replace(bounds["dW"], rounded=2 * bounds["dW"].rounded)
    return bounds


def _unsloth(inputs: Inputs, gemma: bool) -> Results:
    apply = loading.unsloth("rms_layernorm", "fast_rms_layernorm")
    return {"Y": apply(SimpleNamespace(weight=inputs["W"], variance_epsilon=EPS), inputs["X"], gemma)}


def _unsloth_rows(inputs: Inputs, gemma: bool, train_w: bool) -> Results:
    """The kernels for narrow rows, called directly: their self-check compares bits and fails in the interpreter."""
    forward, backward, settings, eager = loading.unsloth(
        "rms_layernorm", "_rms_forward", "_rms_backward", "_multirow_settings", "_eager_kernel"
    )
    x, w = (inputs[name].detach().contiguous() for name in ("X", "W"))
    shape = x.shape
    with patch.object(loading.unsloth("rms_layernorm"), "_MULTIROW", True):  # off after a failed self-check
        rows = settings(shape[-1], x.device)
    x = x.reshape(-1, shape[-1])
    with torch.no_grad():
        y, r = forward(x, w, EPS, gemma, eager, rows)
        results: dict[str, Tensor] = {"Y": y.view(shape)}
        dy = inputs["dY"].reshape(-1, shape[-1]).contiguous()
        dx = torch.empty_like(dy)
        dw = backward(dy, dx, x, w, r, EPS, gemma, eager, rows, train_w=train_w)
        results |= {"dX": dx.view(shape)} | ({"dW": dw} if train_w else {})
    return results


def _few_programs(inputs: Inputs, call: Callable[[Inputs], Results]) -> Results:
    """As on a GPU with two programs for all rows: without enough rows to fill a real one."""
    module, split = loading.unsloth("rms_layernorm"), loading.unsloth("rms_layernorm", "_dw_split")
    with patch.object(module, "_dw_split", lambda units, most: split(units, 2)):
        results = call(inputs)
        if "dX" not in results:
            grads = torch.autograd.grad(results["Y"], [inputs["X"], inputs["W"]], inputs["dY"])
            results |= dict(zip(("dX", "dW"), grads, strict=True))
    return results


def _liger(inputs: Inputs, gemma: bool) -> Results:
    function = loading.liger("rms_norm", "LigerRMSNormFunction")
    offset, mode = (1.0, "gemma") if gemma else (0.0, "llama")
    return {"Y": function.apply(inputs["X"], inputs["W"], EPS, offset, mode, False)}
