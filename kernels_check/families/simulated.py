"""The rounding errors of a chain of operations, where each of them reaches a result on many paths.

The family writes the algorithm once more in float64 and marks every place where it rounds. Storing changes a value by
at most u |value|; n float32 roundings on the way to it change it by n independent amounts of at most u_32 magnitude,
the root of whose sum of squares is c = sqrt(n) u_32 magnitude. To first order the error of a result is a linear
combination of all these, so that it stays below lambda sqrt(sum of (weight c)^2) with the probability that Hoeffding's
inequality gives. That root is the standard deviation of the result when every marked value changes by +c or -c at
random: it is estimated from ``RUNS`` such runs and divided by the lower chi-square quantile of the estimate, so that an
unlucky sample cannot make the tolerance too small.
"""

from collections.abc import Callable, Collection
from functools import cache

import torch
from torch import Tensor

from kernels_check.case import Results
from kernels_check.numerics import FALSE_ALARM, UNIT_FLOAT32, Bound, confidence, unit_roundoff

RUNS = 256


class Rounding:
    """Changes values as rounding to ``dtype`` may; without a dtype it leaves them exact."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype

    def __call__(
        self, value: Tensor, steps: int = 0, magnitude: Tensor | None = None, *, stored: bool = True
    ) -> Tensor:
        """``value`` after ``steps`` float32 roundings of terms of ``magnitude``; stored, or still in float32."""
        if self.dtype is None:
            return value
        change = torch.zeros_like(value)
        if steps:
            size = value if magnitude is None else magnitude
            change = steps**0.5 * UNIT_FLOAT32 * size.abs()
        if stored:
            unit = unit_roundoff(self.dtype)
            least = max(torch.finfo(self.dtype).tiny * unit, torch.finfo(torch.float32).tiny)
            change = change + unit * value.abs() + least
        signs = torch.randint(0, 2, value.shape) * 2 - 1
        return value + signs * change

    def product(self, a: Tensor, b: Tensor, *, stored: bool = True) -> Tensor:
        """The matrix product, summed in float32; stored or still in float32."""
        return self(a @ b, a.shape[-1], a.abs() @ b.abs(), stored=stored)


def bounds(
    algorithm: Callable[[Rounding], Results], dtype: torch.dtype, results: Results, *,
    widened: Collection[str] = (), float32: Collection[str] = (), runs: int = RUNS,
) -> dict[str, Bound]:  # fmt: skip
    """Bounds of the results of ``algorithm``, whose last rounding is not simulated: ``tolerance`` adds it.

    ``widened``: results that are rounded to ``dtype`` and then stored as float32; ``float32``: results never rounded
    to ``dtype``.
    """
    rounding = Rounding(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ran = torch.vmap(lambda _: algorithm(rounding), randomness="different")(torch.empty(runs))
    made = {}
    for name, value in results.items():
        squares = (ran[name] - value).square().sum(0)
        radius = confidence(1, value.numel()) * (squares / _quantile(value.numel(), runs)).sqrt()
        stored = torch.float32 if name in widened or name in float32 else dtype
        if name in widened:
            radius = radius + unit_roundoff(dtype) * (value.abs() + radius)
        made[name] = Bound(steps=0, rounded=radius / unit_roundoff(stored), dtype=stored)
    return made


@cache
def _quantile(elements: int, runs: int) -> float:
    """What the sum of ``runs`` squared standard normal values exceeds in all ``elements``, with 1 - FALSE_ALARM."""
    from scipy.stats import chi2

    return float(chi2.ppf(FALSE_ALARM / elements, runs))
