"""What the gated activations h = f(e) g share: inputs, cases and the error of the products.

Unsloth's backward kernel takes dh, e and g, and overwrites them with h (again), dh f and the gradient of e. The
forward and backward round f to the storage dtype before they multiply (as transformers does), and the backward also
rounds dh g:

    h = round(round(f) g),    dg = round(dh round(f)),    de = round(round(dh g) f'(e))
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import DTYPES, Candidate, Case, Inputs, Results, strided
from kernels_check.numerics import UNIT_FLOAT32, Bound

LEAST = 2.0**-126
"""The smallest normal float32."""

STEPS = 16


@dataclass(frozen=True, kw_only=True)
class Activation:
    """One f. The magnitudes bound the terms that f and f' are computed from, with the growth of exp's error by |e|."""

    family: str
    name: str
    value: Callable[[Tensor], Tensor]
    value_magnitude: Callable[[Tensor], Tensor]
    slope_magnitude: Callable[[Tensor], Tensor]
    module: str
    forward: str
    backward: str
    forward_kernel: str
    backward_kernel: str
    steps: int = STEPS
    """float32 roundings in f or f', those inside exp, tanh or erf included (at most 2 ulp each: CUDA's tables)."""
    liger: Candidate | None = None


def cases(activation: Activation) -> list[Case]:
    """Block edges at 1,024 elements, odd sizes, one element, layouts, magnitudes, NaN and infinity."""
    shapes = {
        "plain": (2, 4, 128), "odd": (3, 5, 67), "one element": (1, 1, 1), "one past a block": (1, 5, 205),
        "one short of a block": (1, 11, 93), "one column": (2, 601, 1), "wide": (1, 2, 5003),
        "whole blocks": (2, 4, 512),
    }  # fmt: skip
    made = [_case(activation, name, shape, 1.0, DTYPES) for name, shape in shapes.items()]
    made += [_case(activation, f"scale {scale:g}", (2, 3, 211), scale, DTYPES) for scale in (2.0**-10, 12.0)]
    made.append(_case(activation, "strided", (2, 3, 101), 1.0, DTYPES))
    special = [0.0, -0.0, 30.0, -30.0, 100.0, -100.0, float("inf"), -float("inf"), float("nan")]
    made.append(_case(activation, "special values", (1, 2, 4 * len(special)), 1.0, DTYPES, special))
    return made


def _case(
    activation: Activation, name: str, shape: tuple[int, ...], scale: float, dtypes: tuple[str, ...],
    special: list[float] | None = None,
) -> Case:  # fmt: skip
    kernels = (activation.forward_kernel, activation.backward_kernel)
    candidates = {
        "unsloth": Candidate(
            call=partial(_unsloth, activation=activation, contiguous=name != "strided"), kernels=kernels
        )
    }
    if activation.liger and name != "one column":
        candidates["liger"] = activation.liger
    return Case(
        family=activation.family,
        name=", ".join(filter(None, (activation.name, name))),
        draw=partial(_draw, shape=shape, scale=scale, layout=name, special=special),
        reference=partial(_reference, activation=activation),
        bounds=partial(_bounds, activation=activation),
        candidates=candidates,
        gradients=("e", "g"),
        dtypes=dtypes,
    )


def _draw(
    generator: torch.Generator, dtype: torch.dtype, *, shape: tuple[int, ...], scale: float, layout: str,
    special: list[float] | None,
) -> Inputs:  # fmt: skip
    e, g, dh = (torch.randn(shape, generator=generator) for _ in range(3))
    e = e * 2 * scale
    if special:
        e.view(-1)[: len(special)] = torch.tensor(special)
    tensors = {"e": e.to(dtype), "g": g.to(dtype), "dh": dh.to(dtype)}
    return {name: strided(t) for name, t in tensors.items()} if layout == "strided" else tensors


def _reference(inputs: Inputs, activation: Activation) -> Results:
    h = activation.value(inputs["e"]) * inputs["g"]
    return {"h": h, "h again": h}


def _bounds(inputs: Inputs, results: Results, activation: Activation) -> dict[str, Bound]:
    e, g = inputs["e"], inputs["g"].abs()
    steps, f = activation.steps, activation.value_magnitude(e)
    h = results["h"].abs()
    dh, slope = inputs["dh"].abs(), activation.slope_magnitude(e)
    de, dg = results["de"].abs(), results["dg"].abs()
    lost = e.abs() * LEAST / UNIT_FLOAT32  # below it a float32 s or 1 + tanh is lost, and so is what e makes of it
    product = Bound(steps=steps, magnitude=f * g, more=((1, lost * g),), rounded=h, spacings=1 + g)
    return {
        "h": product,
        "h again": product,
        "de": Bound(steps=steps, magnitude=dh * g * slope, more=((1, lost * dh * g),), rounded=de, spacings=1 + slope),
        "dg": Bound(steps=steps, magnitude=dh * f, more=((1, lost * dh),), rounded=dg, spacings=1 + dh),
    }


def _unsloth(inputs: Inputs, activation: Activation, contiguous: bool) -> Results:
    forward, backward = loading.unsloth(activation.module, activation.forward, activation.backward)
    e, g, dh = (t if contiguous else t.contiguous() for t in (inputs[n] for n in ("e", "g", "dh")))
    with torch.no_grad():
        results = {"h": forward(e.detach(), g.detach())}
        flat = [torch.empty_like(t).copy_(t.detach()).view(-1, t.shape[-1]) for t in (dh, e, g)]  # guarded copies
        h, df, de = backward(*flat)
    return results | {"h again": h.view(e.shape), "dg": df.view(e.shape), "de": de.view(e.shape)}
