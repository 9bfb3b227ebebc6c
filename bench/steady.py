"""Where the steady state of a run's steps begins, found from the step times: MSER-5, with a floor and a ceiling.

K. P. White, "An effective truncation heuristic for bias reduction in simulation output", Simulation 69 (1997) 323-334;
in batches of five: K. P. White, M. J. Cobb, S. C. Spratt, "A comparison of five steady-state truncation heuristics for
simulation", Winter Simulation Conference 2000. docs/statistics.md shows what it does on recorded runs.
"""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.cell import Frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MIN_STEPS = 100
"""In a shorter series MSER-5 cuts at random, and a trend cannot be told from noise."""
BATCH = 5
"""Steps averaged before MSER is applied."""
TREND_BATCH = 10
"""Steps averaged before a trend is looked for: neighbours of five are still correlated."""
TREND_ALPHA = 0.01
LATE = 1.5
"""In a short series, a step that takes so many times the later median is still warm-up: a late compilation."""


class Steady(Frozen):
    """Where the steady steps begin."""

    first: int
    """Index of the first steady step, from 0."""
    settled: bool | None
    """False: MSER-5 would cut all that it may, or the steps kept have a trend; null: too few steps to tell."""


def steady(steps_s: Sequence[float], floor: int) -> Steady:
    """First steady step of a whole series of step times (warm-up included).

    It is at least ``floor``; the rule itself cuts at most half of the steps. From MIN_STEPS on it is MSER-5: average
    batches of five; cut those whose removal makes the squared standard error of the mean of the rest smallest. In a
    shorter series the cut is after the last late compilation in the first half.
    """
    if len(steps_s) < MIN_STEPS:  # without NumPy, which is slow on a handful of numbers
        half = len(steps_s) // 2
        usual_s = median(steps_s[half:]) if half else 0.0
        late = [i for i in range(half) if steps_s[i] > LATE * usual_s]
        return Steady(first=max(floor, late[-1] + 1 if late else 0), settled=None)
    import numpy as np

    steps = np.asarray(steps_s)
    means = _batch_means(steps, BATCH)
    ceiling = len(means) // 2
    cut = int(np.argmin([means[cut:].var() / (len(means) - cut) for cut in range(ceiling + 1)]))
    first = max(floor, cut * BATCH)
    return Steady(first=first, settled=cut < ceiling and not _trend(steps[first:]))


def _batch_means(steps: "Array", size: int) -> "Array":
    """Means of whole batches; the rest at the end is left out."""
    return steps[: len(steps) // size * size].reshape(-1, size).mean(axis=1)


def _trend(steps: "Array") -> bool:
    """Mann-Kendall: do the batch means rise or fall over time?"""
    from scipy.stats import kendalltau

    means = _batch_means(steps, TREND_BATCH)
    return bool(kendalltau(range(len(means)), means).pvalue < TREND_ALPHA)
