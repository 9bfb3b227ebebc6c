"""GEGLU: h = f(e) g with f the Gaussian error linear unit, exact or approximated.

    exact:        f = e (1 + erf(e / sqrt 2)) / 2,               f' = (1 + erf) / 2 + e exp(-e^2 / 2) / sqrt(2 pi)
    approximate:  f = e (1 + tanh(u)) / 2,                       f' = (1 + tanh u) / 2 + e (1 - tanh^2 u) u' / 2
                  u = sqrt(2 / pi) (e + 0.044715 e^3)

Source: Hendrycks and Gimpel, Gaussian Error Linear Units (2016); torch.nn.functional.gelu. For negative e the sum 1 +
erf or 1 + tanh cancels: its terms have magnitude 2, so that f's have |e|.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu

from kernels_check import loading
from kernels_check.case import Candidate, Case, Inputs, Results
from kernels_check.families import gated


def cases() -> list[Case]:
    """Both forms on every kind of input; Liger has the approximate one."""
    exact = gated.Activation(
        family="geglu", name="exact", value=gelu, value_magnitude=torch.abs, slope_magnitude=_exact_slope,
        module="geglu", forward="geglu_exact_forward_kernel", backward="geglu_exact_backward_kernel",
        forward_kernel="_exact_forward_kernel", backward_kernel="_exact_backward_kernel",
    )  # fmt: skip
    liger = Candidate(call=_liger, kernels=("_geglu_tanh_forward_kernel",), lacks=("h again",), overwrites=("e", "g"))
    approximate = gated.Activation(
        family="geglu", name="approximate", value=partial(gelu, approximate="tanh"), value_magnitude=torch.abs,
        slope_magnitude=_approximate_slope, module="geglu", forward="geglu_approx_forward_kernel",
        backward="geglu_approx_backward_kernel", forward_kernel="_approx_forward_kernel",
        backward_kernel="_approx_backward_kernel", liger=liger,
    )  # fmt: skip
    return gated.cases(exact) + gated.cases(approximate)


def _exact_slope(e: Tensor) -> Tensor:
    """f' = P + e phi with P = (1 + erf(z)) / 2, z = e / sqrt 2 and phi the normal density. In roundings: P's erf and
    sum 5; z's 5 (rsqrt's 4 and the product) times z dP/dz = e phi; e phi's own 8 (exp's 4, the constant, three
    products) and exp's argument e^2 / 2; the sum and the product with dh g 4. Divided by the shared number of steps."""
    density = e.abs() * torch.exp(-e.square() / 2) / (2 * torch.pi) ** 0.5
    whole = 0.5 * (1 + torch.erf(e / 2**0.5)).abs()
    return (5 + (5 + 8 + e.square() / 2) * density + 4 * (whole + density)) / gated.STEPS


def _approximate_slope(e: Tensor) -> Tensor:
    """(1 + tanh u) / 2 has terms of magnitude 1; 1 - tanh^2 u cancels likewise and is multiplied by e u' / 2 = a + 3b
    of the kernel; u's own error is relative and reaches f' through the slopes of both. Past |u| = 10 tanh u is exactly
    1."""
    e = e.abs()
    u = 0.7978845608028654 * (e + 0.044715 * e**3)
    steep = torch.where(u < 10, 0.7978845608028654 * (e + 3 * 0.044715 * e**3), 0.0)
    flat = 1 - torch.tanh(u).square()
    return 1 + u * flat + steep * (1 + u * flat)


def _liger(inputs: Inputs) -> Results:
    return {"h": loading.liger("geglu", "LigerGELUMulFunction").apply(inputs["e"], inputs["g"])}
