"""Projections with a low-rank update, forward and backward in one autograd function: Y = X W^T + s (X A^T) B^T.

    dA = s (dY B)^T X,    dB = s dY^T (X A^T),    dX = dY W + s (dY B) A

Source: Hu et al., LoRA (2021); peft's lora.Linear. One function for the three projections of attention (QKV), one for
its output (O), and one for a gated MLP, Y = D(f(G(X)) * U(X)), with G, U and D such projections. PEFT's own layers hold
the weights, with another scaling and rank for every module; gradients are given to X and to every A and B. The base is
dense, or NF4: then the reference takes what bitsandbytes dequantises it to.

The algorithm is Unsloth's: A and B are rounded to the storage dtype, X A^T, dY B and the base's product are stored,
and sums are stored after every term.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu

from kernels_check import loading
from kernels_check.case import DTYPES, TWO_DTYPES, Candidate, Case, Inputs, Results, expanded_rows
from kernels_check.families import nf4_weights, simulated
from kernels_check.families.simulated import Rounding
from kernels_check.numerics import Bound

PLACES = {"qkv": ("q", "k", "v"), "o": ("o",), "mlp": ("gate", "up", "down")}
SCALES = {"q": 0.5, "k": 2.0, "v": 1.25, "o": 0.75, "gate": 1.5, "up": 0.625, "down": 2.5}
RANKS = {"q": 4, "k": 7, "v": 1, "o": 5, "gate": 3, "up": 6, "down": 8}
OUTS = {"q": 48, "k": 24, "v": 40, "o": 56, "gate": 88, "up": 88, "down": 64}
INNER = 64
"""Width of X; a multiple of NF4's block, as every model's is."""
FUNCTIONS = {"qkv": "LoRA_QKV", "o": "LoRA_W", "mlp": "LoRA_MLP"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One block: which projections, activation, sizes, base and dtype of the update's weights."""

    name: str
    block: str
    activation: str = ""
    shape: tuple[int, int] = (2, 5)
    nf4: bool = False
    float32_lora: bool = False
    expanded: bool = False
    dtypes: tuple[str, ...] = TWO_DTYPES

    @property
    def places(self) -> tuple[str, ...]:
        return PLACES[self.block]

    def outputs(self) -> tuple[str, ...]:
        return self.places if self.block == "qkv" else ("Y",)


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str, tuple[str, ...]]] = {
    "swiglu": (lambda e: e * torch.sigmoid(e), "apply_lora_mlp_swiglu", ("_fg_kernel", "_DWf_DW_dfg_kernel")),
    "geglu exact": (
        gelu, "apply_lora_mlp_geglu_exact", ("_exact_forward_kernel", "_exact_backward_kernel")
    ),
    "geglu approximate": (
        partial(gelu, approximate="tanh"), "apply_lora_mlp_geglu_approx",
        ("_approx_forward_kernel", "_approx_backward_kernel"),
    ),
}  # fmt: skip
"""The activation, Unsloth's function and its kernels."""


def cases() -> list[Case]:
    """Each block with a dense and an NF4 base, float32 and narrow update weights, one token, a broadcast gradient."""
    half = ("float16", "bfloat16")
    variants = []
    for block, activation in (("qkv", ""), ("o", ""), ("mlp", "swiglu")):
        make = partial(Variant, block=block, activation=activation)
        name = activation or block
        variants += [
            make(name=name, dtypes=DTYPES),
            make(name=f"{name}, float32 update", float32_lora=True, dtypes=half),
            make(name=f"{name}, one token", shape=(1, 1)),
            make(name=f"{name}, expanded gradient", expanded=True, dtypes=("bfloat16",)),
            make(name=f"{name}, NF4", nf4=True, float32_lora=True, dtypes=half),
        ]
    variants += [Variant(name=name, block="mlp", activation=name) for name in ("geglu exact", "geglu approximate")]
    return [_case(variant) for variant in variants]


def _case(variant: Variant) -> Case:
    kernels = ACTIVATIONS[variant.activation][2] if variant.activation else ()
    if variant.nf4:
        kernels += ("_nf4_dequant_kernel",)
    return Case(
        family="fast_lora",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=partial(_reference, variant=variant),
        bounds=partial(_bounds, variant=variant),
        candidates={"unsloth": Candidate(call=partial(_unsloth, variant=variant), kernels=kernels, overwrites=("X",))},
        gradients=("X", *(f"{matrix}_{place}" for place in variant.places for matrix in "AB")),
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    lora = torch.float32 if variant.float32_lora else dtype
    inputs: Inputs = {"X": normal(*variant.shape, INNER).to(dtype), "dtype": str(dtype).removeprefix("torch.")}
    for place in variant.places:
        inner = OUTS["up"] if place == "down" else INNER
        weight = (normal(OUTS[place], inner) / inner**0.5).to(dtype)
        if variant.nf4:
            packed = nf4_weights.draw(weight)
            inputs |= {f"{name}_{place}": value for name, value in packed.items()}
            weight = nf4_weights.bitsandbytes_dense(packed, weight.shape, dtype)
        inputs[f"W_{place}"] = weight
        inputs[f"A_{place}"] = (normal(RANKS[place], inner) / inner**0.5).to(lora)
        inputs[f"B_{place}"] = (normal(OUTS[place], RANKS[place]) / RANKS[place] ** 0.5).to(lora)
    for name in variant.outputs():
        dy = normal(
            *variant.shape, OUTS["down" if variant.block == "mlp" else variant.places[0] if name == "Y" else name]
        )
        inputs[f"d{name}"] = expanded_rows(dy[0].to(dtype), len(dy)) if variant.expanded else dy.to(dtype)
    return inputs


def _linear(inputs: Inputs, place: str, x: Tensor, rounding: Rounding | None = None) -> Tensor:
    w, a, b, scale = (*(inputs[f"{m}_{place}"] for m in "WAB"), SCALES[place])
    if rounding is None:
        return x @ w.T + scale * (x @ a.T) @ b.T
    update = scale * rounding.product(rounding.product(x, a.T), b.T, stored=False)
    return rounding.product(x, w.T) + update


def _reference(inputs: Inputs, variant: Variant) -> Results:
    x = inputs["X"]
    if variant.block != "mlp":
        return {n: _linear(inputs, p, x) for n, p in zip(variant.outputs(), variant.places, strict=True)}
    activation = ACTIVATIONS[variant.activation][0]
    return {"Y": _linear(inputs, "down", activation(_linear(inputs, "gate", x)) * _linear(inputs, "up", x))}


def _bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    weights = [f"{matrix}_{place}" for place in variant.places for matrix in "AB"]
    wide = weights if variant.float32_lora else []

    def algorithm(r: Rounding) -> Results:
        narrow = inputs | {name: r(inputs[name]) for name in wide}
        return _mlp(narrow, variant, r) if variant.block == "mlp" else _projections(narrow, variant, r)

    return simulated.bounds(algorithm, getattr(torch, inputs["dtype"]), results, widened=[f"d{name}" for name in wide])


def _update_gradients(inputs: Inputs, place: str, x: Tensor, dy: Tensor, r: Rounding) -> tuple[Results, Tensor]:
    """The gradients of A and B, and dy B, which the gradient of x needs too."""
    a, b, scale = inputs[f"A_{place}"], inputs[f"B_{place}"], SCALES[place]
    dyb = r.product(dy, b)
    da = scale * r.product(dyb.T, x, stored=False)
    db = scale * r.product(dy.T, r.product(x, a.T), stored=False)
    return {f"dA_{place}": da, f"dB_{place}": db}, dyb


def _input_gradient(inputs: Inputs, parts: dict[str, tuple[Tensor, Tensor]], r: Rounding) -> Tensor:
    """The sum over projections of dy W + s (dy B) A, stored after every term but the last."""
    terms = []
    for place, (dy, dyb) in parts.items():
        terms.append(r.product(dy, inputs[f"W_{place}"], stored=False))
        terms.append(SCALES[place] * r.product(dyb, inputs[f"A_{place}"], stored=False))
    total = terms[0]
    for term in terms[1:]:
        total = r(total) + term
    return total


def _projections(inputs: Inputs, variant: Variant, r: Rounding) -> Results:
    shape, x = inputs["X"].shape, inputs["X"].reshape(-1, INNER)
    results, parts = {}, {}
    for name, place in zip(variant.outputs(), variant.places, strict=True):
        dy = inputs[f"d{name}"].reshape(-1, OUTS[place])
        results[name] = _linear(inputs, place, x, r).reshape(*shape[:-1], -1)
        gradients, dyb = _update_gradients(inputs, place, x, dy, r)
        results |= gradients
        parts[place] = dy, dyb
    return results | {"dX": _input_gradient(inputs, parts, r).reshape(shape)}


def _mlp(inputs: Inputs, variant: Variant, r: Rounding) -> Results:
    activation = ACTIVATIONS[variant.activation][0]
    shape, x, dy = inputs["X"].shape, inputs["X"].reshape(-1, INNER), inputs["dY"].reshape(-1, OUTS["down"])
    e, g = r(_linear(inputs, "gate", x, r)), r(_linear(inputs, "up", x, r))
    f = r(activation(e), STEPS, e)  # |e| bounds the terms of every f here
    slope = torch.func.grad(lambda at: activation(at).sum())(e)
    h = r(f * g)
    y = _linear(inputs, "down", h, r)
    gradients, dyb = _update_gradients(inputs, "down", h, dy, r)
    dh = r(_input_gradient(inputs, {"down": (dy, dyb)}, r))
    dg, de = r(dh * f), r(r(dh * g) * r(slope, STEPS, 1 + e.abs(), stored=False))
    results = {"Y": y.reshape(*shape[:-1], -1)} | gradients
    parts = {}
    for place, incoming in (("up", dg), ("gate", de)):
        gradients, dyb = _update_gradients(inputs, place, x, incoming, r)
        results |= gradients
        parts[place] = incoming, dyb
    return results | {"dX": _input_gradient(inputs, parts, r).reshape(shape)}


STEPS = 16
"""float32 roundings in an activation or its slope (see ``gated``)."""


def _unsloth(inputs: Inputs, variant: Variant) -> Results:
    apply = loading.unsloth(
        "fast_lora", ACTIVATIONS[variant.activation][1] if variant.activation else f"apply_lora_{variant.block}"
    )
    out = apply(_peft_module(inputs, variant), inputs["X"])
    outputs = dict(zip(variant.outputs(), out if isinstance(out, tuple) else (out,), strict=True))
    for name, value in outputs.items():
        ran = type(value.grad_fn).__name__
        if not ran.startswith(FUNCTIONS[variant.block]):
            raise RuntimeError(f"{name} came from {ran}, not from {FUNCTIONS[variant.block]}: PEFT's forward ran")
    return outputs


def _peft_module(inputs: Inputs, variant: Variant) -> torch.nn.Module:
    """PEFT's layers around the case's tensors."""
    from peft import LoraConfig, inject_adapter_in_model

    module = torch.nn.Module()
    names = {place: f"{place}_proj" for place in variant.places}
    for place, name in names.items():
        setattr(module, name, torch.nn.Linear(*inputs[f"W_{place}"].shape[::-1], bias=False))
    config = LoraConfig(
        target_modules=list(names.values()),
        rank_pattern={name: RANKS[place] for place, name in names.items()},
        alpha_pattern={name: SCALES[place] * RANKS[place] for place, name in names.items()},
    )
    inject_adapter_in_model(config, module)
    for place, name in names.items():
        layer, weight = getattr(module, name), inputs[f"W_{place}"]
        if variant.nf4:
            shape, dtype = weight.shape, weight.dtype
            parts = {part: inputs[f"{part}_{place}"] for part in nf4_weights.PARTS}
            nf4_weights.needs_own_reader(parts["packed"])
            weight = parts["packed"]
            weight.quant_state = nf4_weights.state(parts, shape, dtype)
        layer.base_layer._parameters["weight"] = weight
        layer.lora_A["default"]._parameters["weight"] = inputs[f"A_{place}"]
        layer.lora_B["default"]._parameters["weight"] = inputs[f"B_{place}"]
    return module
