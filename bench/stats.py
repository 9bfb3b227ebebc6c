"""Ratios between groups of processes, their intervals and verdicts. The unit is the process: its steps are not
independent, so each process gives one value. docs/statistics.md has the reasons and the simulations behind them.

    ratio(numerators, denominators) -> Ratio -> verdict(ratio)      adjust(p_values) for many at once
    spread(peaks) -> Spread                                        memory
"""

import math
from collections.abc import Sequence
from functools import cache
from statistics import median
from typing import Literal

from bench.cell import Frozen

RateVerdict = Literal["faster", "slower", "same", "inconclusive"]

ALPHA = 0.01
"""Share of false verdicts accepted; intervals are at 1 - ALPHA, the level that decides."""
MARGIN = 0.02
"""Two rates whose ratio lies within 1/(1 + MARGIN) to 1 + MARGIN are the same: 12 minutes of a ten-hour run, and
below the 3 % that a comparison of releases has to find."""
POWER = 0.8
DRAWS = 10_000
MIN_PROCESSES = 3
"""A side. With two, the t quantile at 99 % is 10 to 64 and the spread rests on one difference."""
GRANULE_BYTES = 2 * 2**20
"""Memory is handed out in steps of 2 MiB: CUDA's mapping granularity, and what torch rounds its segments to."""


class Ratio(Frozen):
    """Ratio of two groups of processes. ``interval`` and ``p_value`` are Welch's t on logarithms, unpaired."""

    value: float | None
    """Ratio of the medians; null where a side is empty or a value is not above 0."""
    numerators: int
    denominators: int
    """Processes."""
    log_difference: float | None = None
    """Difference of the mean logarithms: the logarithm of the ratio of geometric means."""
    log_standard_error: float | None = None
    degrees_of_freedom: float | None = None
    """Welch-Satterthwaite; null where no process differs from its side."""
    p_value: float | None = None
    """Two-sided, of a ratio of 1."""
    mde: float | None = None
    """Minimum detectable effect: the change (0.03 is 3 %) that this spread and these processes would have shown with
    probability POWER at ALPHA."""
    why: str | None = None
    """Why there is no interval."""

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float] | None:
        """Low and high end of the ratio's confidence interval."""
        from scipy.stats import t

        if self.log_difference is None or self.log_standard_error is None:
            return None
        reach = 0.0
        if self.degrees_of_freedom is not None:
            reach = float(t.isf((1 - level) / 2, self.degrees_of_freedom)) * self.log_standard_error
        return math.exp(self.log_difference - reach), math.exp(self.log_difference + reach)


class Spread(Frozen):
    """Memory of one side over its processes, bytes."""

    minimum: int
    median: int
    """Rounded where two middle values are averaged."""
    maximum: int
    deterministic: bool | None
    """All processes within one granule (2 MiB) of each other; null for a single process."""


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Ratio of medians of ``numerators`` over ``denominators``, one positive value a process (tokens/s, bytes)."""
    import numpy as np
    from statsmodels.stats.weightstats import CompareMeans

    sizes = {"numerators": len(numerators), "denominators": len(denominators)}
    fewest = min(sizes.values())
    if fewest == 0:
        return Ratio(value=None, why="a side has no process", **sizes)
    if not all(math.isfinite(v) and v > 0 for v in (*numerators, *denominators)):
        return Ratio(value=None, why="a value is not a number above 0", **sizes)
    value = median(numerators) / median(denominators)
    if fewest < MIN_PROCESSES:
        return Ratio(
            value=value,
            why=f"{fewest} of at least {MIN_PROCESSES} processes a side",
            **sizes,
        )
    logs = np.log(numerators), np.log(denominators)
    if all(np.ptp(side) == 0 for side in logs):
        return Ratio(
            value=value, log_difference=math.log(value), log_standard_error=0.0, mde=0.0,
            p_value=float(value == 1), **sizes,
        )  # fmt: skip
    means = CompareMeans.from_data(*logs)
    difference, error = float(logs[0].mean() - logs[1].mean()), float(means.std_meandiff_separatevar)
    spread_of_a_process = error / math.sqrt(1 / len(numerators) + 1 / len(denominators))
    return Ratio(
        value=value,
        log_difference=difference,
        log_standard_error=error,
        degrees_of_freedom=float(means.dof_satt()),
        p_value=float(means.ttest_ind(usevar="unequal")[1]),
        mde=math.expm1(detectable(len(numerators), len(denominators)) * spread_of_a_process),
        **sizes,
    )


def abba_halves(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """A side's runs, in their order, as if two backends had made them in turns A B B A."""
    first = [value for i, value in enumerate(values) if i % 4 in (0, 3)]
    return first, [value for i, value in enumerate(values) if i % 4 in (1, 2)]


def verdict(ratio: Ratio, margin: float = MARGIN, alpha: float = ALPHA, p_value: float | None = None) -> RateVerdict:
    """What the ratio of a candidate's rate to a baseline's says, at confidence ``1 - alpha``.

    ``same`` when the interval lies within the margin, even where it excludes 1; else ``faster`` or ``slower`` when it
    excludes 1. ``p_value`` is the ratio's own adjusted for other findings (see ``adjust``): the direction must survive
    that too.
    """
    interval = ratio.interval(1 - alpha)
    if interval is None:
        return "inconclusive"
    low, high = interval
    if 1 / (1 + margin) < low and high < 1 + margin:
        return "same"
    if (low <= 1 <= high) or (p_value is not None and p_value > alpha):
        return "inconclusive"
    return "faster" if low > 1 else "slower"


def adjust(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values, in the same order; findings without one (None) are not counted."""
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if p is not None]
    adjusted = iter(multipletests(known, method="holm")[1].tolist() if known else [])
    return [None if p is None else next(adjusted) for p in p_values]


def spread(peaks: Sequence[int]) -> Spread:
    """Least, median and greatest of at least one peak (bytes), and whether they are one number."""
    low, high = min(peaks), max(peaks)
    return Spread(
        minimum=low,
        median=round(median(peaks)),
        maximum=high,
        deterministic=None if len(peaks) == 1 else high - low <= GRANULE_BYTES,
    )


@cache
def detectable(numerators: int, denominators: int, power: float = POWER) -> float:
    """Difference of means, in standard deviations of a process, that Welch's t at ALPHA finds with ``power``.

    By simulation with normal noise, alike on both sides. The closed form is Student's: at 4 processes a side, what it
    promises with 80 % Welch's t finds in 70 %.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    above, below = rng.normal(size=(DRAWS, numerators)), rng.normal(size=(DRAWS, denominators))

    def lack(difference: float) -> float:
        found = ttest_ind(above + difference, below, axis=1, equal_var=False)
        return float(np.mean((found.pvalue < ALPHA) & (found.statistic > 0))) - power

    return float(brentq(lack, 0, 50, xtol=1e-3))
