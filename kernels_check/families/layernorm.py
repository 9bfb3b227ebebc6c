"""Layer norm: y = n w + b with n = (x - mean(x)) r and r = 1 / sqrt(var(x) + eps), all in float32.

Source: Ba, Kiros and Hinton, Layer Normalization (2016); torch.nn.LayerNorm. Gradients with g = dy w:

    dx = r (g - mean(g) - n mean(g n)),    dw = sum over rows of dy n,    db = sum over rows of dy

The subtraction of the mean cancels, so that the error of n is measured against (|x| + mean |x|) r. The error of r is
relative to the variance, which the two-pass formula keeps: (mean |x| / standard deviation) times that of a sum, at
most.
"""

from functools import partial
from types import SimpleNamespace

import torch

from kernels_check import loading
from kernels_check.case import Candidate, Case, Inputs, Results
from kernels_check.families.norm_inputs import Variant, variants
from kernels_check.numerics import Bound

EPS = 1e-5


def cases() -> list[Case]:
    """Every kind of input, with bias; once without; once with a mean in which a one-pass variance is lost."""
    made = [_case(variant, bias=True) for variant in variants()]
    made.append(_case(Variant(name="large mean", shape=(3, 5, 129), offset=4096.0, dtypes=("float32",)), bias=True))
    return [*made, _case(Variant(name="no bias", shape=(3, 5, 129)), bias=False)]


def _case(variant: Variant, bias: bool) -> Case:
    trained = () if variant.frozen else ("W", "b") if bias else ("W",)
    gradients = ("X", *trained)
    candidates = {
        "unsloth": Candidate(call=_unsloth, kernels=("layernorm_forward", "layernorm_backward(_dw)?")),
        "liger": Candidate(call=_liger, kernels=("_layer_norm_forward_kernel", "_layer_norm_backward_kernel")),
    }
    if variant.name == "many rows" or not bias:  # slow in the interpreter; Liger's needs a bias
        del candidates["liger"]
    return Case(
        family="layernorm",
        name=variant.name,
        draw=partial(_draw, variant=variant, bias=bias),
        reference=_reference,
        bounds=_bounds,
        candidates=candidates,
        gradients=gradients,
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant, bias: bool) -> Inputs:
    inputs = variant.draw(generator, dtype)
    return inputs if bias else inputs | {"b": None}


def _reference(inputs: Inputs) -> Results:
    x, bias = inputs["X"], inputs["b"]
    centred = x - x.mean(-1, keepdim=True)
    n = centred * (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return {"Y": n * inputs["W"] + (0.0 if bias is None else bias)}


def _bounds(inputs: Inputs, results: Results) -> dict[str, Bound]:
    x, w, width = inputs["X"], inputs["W"].abs(), inputs["X"].shape[-1]
    centred = x - x.mean(-1, keepdim=True)
    r = (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
    size = x.abs() + x.abs().mean(-1, keepdim=True)
    spread = 1 + r * x.abs().mean(-1, keepdim=True)  # the mean's error within the variance
    n = size * r + (centred * r).abs() * spread
    bias = 0.0 if inputs["b"] is None else inputs["b"].abs()
    bounds = {"Y": Bound(steps=width + 8, magnitude=n * w + bias)}
    if "dX" in results:
        g = inputs["dY"].abs() * w
        magnitude = r * (g + g.mean(-1, keepdim=True) + n * (g * n).mean(-1, keepdim=True))
        bounds["dX"] = Bound(steps=2 * width + 16, magnitude=magnitude * spread)
    rows = x[..., 0].numel()
    if "dW" in results:
        terms = inputs["dY"].abs() * n
        bounds["dW"] = Bound(steps=rows + width + 8, magnitude=terms.reshape(-1, width).sum(0))
    if "db" in results:
        bounds["db"] = Bound(steps=rows, magnitude=inputs["dY"].abs().reshape(-1, width).sum(0))
    return bounds


def _unsloth(inputs: Inputs) -> Results:
    apply = loading.unsloth("layernorm", "fast_layernorm")
    module = SimpleNamespace(weight=inputs["W"], bias=inputs["b"], variance_epsilon=EPS, elementwise_affine=True)
    return {"Y": apply(module, inputs["X"])}


def _liger(inputs: Inputs) -> Results:
    function = loading.liger("layer_norm", "LigerLayerNormFunction")
    return {"Y": function.apply(inputs["X"], inputs["W"], inputs["b"], EPS)}
