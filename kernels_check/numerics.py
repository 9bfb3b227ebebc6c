"""How far a right kernel may lie from the float64 reference: derived from the rounding errors it must make.

A kernel computes in float32 and stores in its storage dtype. For one element with exact value ``v`` the error is at
most

    u_s (|v| + rest)                  rounding of the result to the storage dtype, unit roundoff u_s
    + gamma(n, u_32) * magnitude      n float32 roundings; magnitude = sum of the absolute terms; several such parts
    + u_s * rounded                   intermediate results that the algorithm itself rounds to the storage dtype
    + spacing                         underflow: half the smallest subnormal, float32 results below 2^-126 flushed

``gamma(n, u)`` is the smaller of Higham's n u / (1 - n u) (Accuracy and Stability of Numerical Algorithms, 2nd ed.,
section 3.1), which always holds, and the probabilistic exp(lambda sqrt(n) u + n u^2 / (1 - u)) - 1 (Higham and Mary, A
New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41(5), 2019, theorem 2.4), which holds for
one element with probability at least 1 - 2 n exp(-lambda^2 (1 - u)^2 / 2). ``lambda`` follows from the number of
compared elements and ``FALSE_ALARM``. Since the accumulators are float32, an accumulator of 16 bits shows: its error is
u_16 / u_32 (2^13 for float16, 2^16 for bfloat16) times the second term.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

UNIT_FLOAT32 = 2.0**-24
FALSE_ALARM = 1e-6
"""Probability that one comparison of a right kernel fails, under the model of independent rounding errors."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the error of one output may be made of. Tensors are float64 and broadcast to the output's shape."""

    steps: int
    """float32 roundings on the way to one element: length of the reductions plus elementwise steps."""
    magnitude: "Tensor | None" = None
    """Sum of the absolute values of the summed terms; None where nothing cancels: the value's own magnitude."""
    more: "tuple[tuple[int, Tensor], ...]" = ()
    """Further parts: float32 roundings and the magnitude that they touch."""
    rounded: "Tensor | None" = None
    """Magnitude of what intermediate roundings to the storage dtype touch, summed over those roundings."""
    spacings: "Tensor | float" = 1.0
    """How many smallest spacings underflow may add: 1 for the result, plus what an intermediate's is multiplied by."""
    dtype: "torch.dtype | None" = None
    """Storage dtype of the result where it is not the case's dtype (losses are float32)."""


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The worst element of one output."""

    error: float
    """In tolerances: above 1 the element is wrong; infinite where a NaN, infinity, shape or dtype differs."""
    index: tuple[int, ...]
    got: float
    expected: float
    tolerance: float
    reason: str | None = None


def unit_roundoff(dtype: "torch.dtype") -> float:
    """Half the distance from 1 to the next number."""
    import torch

    return torch.finfo(dtype).eps / 2


def confidence(steps: int, elements: int) -> float:
    """lambda, so that all ``elements`` results of ``steps`` roundings hold with probability 1 - FALSE_ALARM."""
    return math.sqrt(2 * math.log(2 * max(1, steps) * max(1, elements) / FALSE_ALARM))


def gamma(steps: int, unit: float, elements: int) -> float:
    """Relative error of ``steps`` roundings of unit roundoff ``unit`` in each of ``elements`` results."""
    worst = steps * unit / (1 - steps * unit) if steps * unit < 1 else math.inf
    likely = math.expm1(confidence(steps, elements) * math.sqrt(steps) * unit + steps * unit**2 / (1 - unit))
    return min(worst, likely)


def rounded_sum(terms: "Tensor", dim: int, elements: int) -> "Tensor":
    """``Bound.rounded`` for a sum whose terms were each rounded to the storage dtype before: the errors are
    independent, so that |sum of errors| <= lambda u sqrt(sum of squares) (Hoeffding), never above u times the sum of
    magnitudes."""
    likely = confidence(1, elements) * terms.square().sum(dim).sqrt()
    return likely.minimum(terms.abs().sum(dim))


def tolerance(expected: "Tensor", bound: Bound, dtype: "torch.dtype") -> "Tensor":
    """Elementwise tolerance for a float64 ``expected`` stored as ``dtype``; NaN and infinite parts count as zero."""
    import torch

    def finite(part: "Tensor") -> "Tensor":
        return torch.nan_to_num(part, nan=0.0, posinf=0.0, neginf=0.0)

    value = finite(expected).abs()
    magnitude = value if bound.magnitude is None else finite(bound.magnitude).abs()
    unit, info = unit_roundoff(dtype), torch.finfo(dtype)
    rest = gamma(bound.steps, UNIT_FLOAT32, expected.numel()) * magnitude
    for steps, part in bound.more:
        rest = rest + gamma(steps, UNIT_FLOAT32, expected.numel()) * finite(part).abs()
    if bound.rounded is not None:
        rest = rest + unit * finite(bound.rounded).abs()
    spacing = max(info.tiny * unit, torch.finfo(torch.float32).tiny)
    return unit * (value + rest) + rest + spacing * bound.spacings


def compare(got: "Tensor", expected: "Tensor", bound: Bound, dtype: "torch.dtype") -> Worst:
    """The worst element of ``got`` against the float64 ``expected``.

    NaN must be where the reference has NaN, and an infinity of the same sign where the reference, rounded to the
    storage dtype, is infinite; where reference and tolerance straddle the largest finite number both are right.
    """
    import torch

    stored = bound.dtype or dtype
    if got.shape != expected.shape:
        return _wrong(f"shape {tuple(got.shape)} instead of {tuple(expected.shape)}")
    if got.dtype != stored:
        return _wrong(f"dtype {got.dtype} instead of {stored}")
    if not got.numel():
        return Worst(error=0.0, index=(), got=0.0, expected=0.0, tolerance=0.0)
    got = got.detach().cpu().double()
    allowed = tolerance(expected, bound, stored).broadcast_to(expected.shape)
    target = expected.to(stored).double()
    error = (got - expected).abs() / allowed
    largest = torch.finfo(stored).max
    unequal = target.isfinite() & got.isfinite()
    alike = (got == target) | (got.isnan() & target.isnan())
    straddling = ((expected.abs() - largest).abs() <= allowed) & (got.sign() == expected.sign()) & ~got.isnan()
    error = torch.where(unequal, error, torch.where(alike | straddling, 0.0, math.inf))
    flat = int(error.argmax())
    return Worst(
        error=error.flatten()[flat].item(),
        index=tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), expected.shape)),
        got=got.flatten()[flat].item(),
        expected=expected.flatten()[flat].item(),
        tolerance=allowed.flatten()[flat].item(),
    )


def _wrong(reason: str) -> Worst:
    return Worst(error=math.inf, index=(), got=math.nan, expected=math.nan, tolerance=0.0, reason=reason)
