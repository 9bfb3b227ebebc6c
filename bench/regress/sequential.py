"""When to stop: paired runs looked at a few times, with the share of false alarms of all looks fixed beforehand.

The unit is a pair: one process of each release, run next to each other (A B, B A, ...), so that a drift of the machine
falls on both. Its value is the logarithm of candidate over baseline. At look k, Student's t for paired values is taken
at ALPHA times the look's share. The shares add up to 1, so by Bonferroni's inequality a release that changed nothing
is called changed at any look with a probability of at most ALPHA, whatever the looks have in common. Early looks have
small shares: they stop for what is plain.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bench.stats import ALPHA, POWER

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOOKS: dict[int, float] = {4: 0.2, 7: 0.3, 10: 0.5}
"""After how many pairs is looked, and the share of ALPHA that the look may spend."""
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


def look(logs: Sequence[float], margin: float, *, alpha: float = ALPHA, metrics: int = 1) -> Look:
    """Look at the pairs' log ratios: ``same`` where the interval lies within the margin, ``more`` or ``less`` where it
    excludes no change, else ``open``. Between looks the interval is given and the change stays open.

    ``metrics``: how many are tested together; ALPHA is divided among them. At least two pairs.
    """
    import numpy as np
    from scipy.special import stdtrit

    pairs = len(logs)
    share = LOOKS.get(pairs, min(LOOKS.values()))
    level = alpha * share / metrics
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


def pairs_until(draw: Callable[[int], float], margin: float, alpha: float = ALPHA) -> Look:
    """Draw pairs until a look decides or the last one is made."""
    logs: list[float] = []
    while True:
        logs.append(draw(len(logs)))
        if len(logs) in LOOKS and ((found := look(logs, margin, alpha=alpha)).change != "open" or len(logs) == MOST):
            return found


def simulate(
    effect: float, *, spread: float, margin: float, drift: float = 0.0, runs: int = 2000, seed: int = 0
) -> dict[Change, float]:
    """Share of outcomes over simulated comparisons of processes whose logarithms spread by ``spread`` (normal), while
    the machine drifts by ``drift`` a run, for a candidate that is changed by ``effect``."""
    import numpy as np

    rng = np.random.default_rng(seed)
    counts: dict[Change, float] = {"more": 0.0, "less": 0.0, "same": 0.0, "open": 0.0}
    for _ in range(runs):
        noise: NDArray[Any] = rng.normal(0.0, spread, (MOST, 2))

        def draw(pair: int, noise: "NDArray[Any]" = noise) -> float:
            order = drift if pair % 2 == 0 else -drift  # the candidate runs second in even pairs, first in odd ones
            return math.log1p(effect) + float(noise[pair, 1] - noise[pair, 0]) + order

        counts[pairs_until(draw, margin).change] += 1 / runs
    return counts
