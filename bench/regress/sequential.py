"""When to stop: paired runs looked at a few times, with the share of false alarms of all looks fixed beforehand.

The unit is a pair: one process of each release, run next to each other (A B, B A, ...), so that a drift of the machine
falls on both. Its value is the logarithm of candidate over baseline. At look k, Student's t for paired values is taken
at ALPHA times the look's share times the metric's weight. The shares add up to 1, and so do the weights of all metrics,
so by Bonferroni's inequality a release that changed nothing is called changed in any metric at any look with a
probability of at most ALPHA, whatever looks and metrics have in common.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.stats import ALPHA, POWER

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOOKS: dict[int, float] = {4: 0.4, 5: 0.2, 6: 0.15, 8: 0.15, 10: 0.1}
"""After how many pairs is looked, and the share of ALPHA that the look may spend.

With few pairs it is the quantile of t that costs power (3 degrees of freedom at 4 pairs), so the first look has the
largest share; at ten the quantile grows little where alpha shrinks. How many pairs fit into a budget is up to the
machine: hence the looks between.
"""
MOST = max(LOOKS)
Change = Literal["more", "less", "same", "open"]


@dataclass(frozen=True)
class Look:
    """What the pairs so far say of the candidate over the baseline, as relative change."""

    change: Change
    effect: float
    low: float
    high: float
    level: float
    spread: float
    """Standard deviation of the pairs' logarithms."""
    pairs: int

    @property
    def mde(self) -> float:
        """Change that so many pairs of this spread show with probability POWER at this look."""
        import numpy as np
        from statsmodels.stats.power import TTestPower

        if not self.spread:
            return 0.0
        size = TTestPower().solve_power(nobs=self.pairs, alpha=1 - self.level, power=POWER)
        return math.expm1(float(np.squeeze(size)) * self.spread)


def look(logs: Sequence[float], margin: float, *, alpha: float = ALPHA, weight: float = 1.0) -> Look:
    """Look at the pairs' log ratios: ``same`` where the interval lies within the margin, ``more`` or ``less`` where it
    excludes no change, else ``open``. Between looks the interval is given and the change stays open.

    ``weight``: the part of ALPHA that is this metric's, where several are tested together. At least two pairs.
    """
    import numpy as np
    from scipy.special import stdtrit

    pairs = len(logs)
    share = LOOKS.get(pairs, min(LOOKS.values()))
    level = alpha * share * weight
    mean, spread = float(np.mean(logs)), float(np.std(logs, ddof=1))
    reach = float(stdtrit(pairs - 1, 1 - level / 2)) * spread / math.sqrt(pairs)
    low, high = mean - reach, mean + reach
    change: Change = "open"
    if pairs in LOOKS:
        if -math.log1p(margin) < low and high < math.log1p(margin):
            change = "same"
        elif low > 0 or high < 0:
            change = "more" if low > 0 else "less"
    return Look(change=change, effect=math.expm1(mean), low=math.expm1(low), high=math.expm1(high), level=1 - level,
                spread=spread, pairs=pairs)  # fmt: skip


def pairs_until(draw: Callable[[int], float], margin: float, *, weight: float = 1.0) -> Look:
    """Draw pairs until a look decides or the last one is made."""
    logs: list[float] = []
    while True:
        logs.append(draw(len(logs)))
        if len(logs) not in LOOKS:
            continue
        found = look(logs, margin, weight=weight)
        if found.change != "open" or len(logs) == MOST:
            return found


def simulate(
    effect: float, *, spread: float, margin: float, drift: float = 0.0, weight: float = 1.0, runs: int = 2000,
    seed: int = 0,
) -> list[Look]:  # fmt: skip
    """The look that ended each of ``runs`` simulated comparisons of processes whose logarithms spread by ``spread``
    (normal), while the machine drifts by ``drift`` a run, for a candidate that is changed by ``effect``."""
    import numpy as np

    rng = np.random.default_rng(seed)

    def one() -> Look:
        noise: NDArray[np.float64] = rng.normal(0.0, spread, (MOST, 2))

        def draw(pair: int) -> float:
            order = drift if pair % 2 == 0 else -drift  # the candidate runs second in even pairs, first in odd ones
            return math.log1p(effect) + float(noise[pair, 1] - noise[pair, 0]) + order

        return pairs_until(draw, margin, weight=weight)

    return [one() for _ in range(runs)]
