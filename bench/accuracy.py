"""Accuracy of two sides compared item by item, from the per-item files that lm-eval wrote.

Both sides answered the same items, so an item is the unit and its two scores are a pair. Over several seeds the scores
of an item are averaged first. docs/statistics.md has the reasons and the figures.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.cell import Frozen
from bench.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

AccuracyVerdict = Literal["non-inferior", "inferior", "inconclusive"]

MARGIN = 0.03
"""Largest loss of accuracy (a share of the items) that still counts as none: in the committed SmolLM2 records it is
about what the step from r 16 down to r 4 costs, so a loss of that size has to be seen."""
ALPHA = 0.05
"""Of the two-sided interval; non-inferiority is then tested at 2.5 %, one-sided."""
POWER = 0.8
EXACT_BELOW = 25
"""Fewer discordant items than this: McNemar's exact test, else chi-square with continuity correction."""
SHOWN_IDS = 8

Key = tuple[int, str]
"""An item: lm-eval's doc_id, and its hash of the document."""


class Discordant(Frozen):
    """McNemar's table and test, of one pair of runs."""

    both_right: int
    only_baseline: int
    only_candidate: int
    neither: int
    p_value: float
    """Of equal accuracy, two-sided."""
    exact: bool


class PairedAccuracy(Frozen):
    """Candidate's accuracy less baseline's, over the same items."""

    items: int
    seeds: int
    baseline: float
    candidate: float
    difference: float
    low: float
    """Interval of ``difference`` at 1 - ALPHA: items resampled, these training runs taken as given (Agresti and Min's
    adjusted interval)."""
    high: float
    margin: float
    verdict: AccuracyVerdict
    """non-inferior: low > -margin; inferior: high < -margin."""
    non_inferiority_p: float
    """One-sided, of a loss of ``margin`` or more."""
    tost_p: float
    """Of a difference of ``margin`` or more in either direction: below ALPHA / 2 the two are equivalent."""
    mde: float
    """Smallest difference that these items would have shown with probability POWER; also the smallest margin at which
    truly equal sides would have been found non-inferior with that probability."""
    mcnemar: Discordant | None
    """Null where there are several seeds or scores other than 0 and 1."""
    by_seed: list[float]
    """Difference of each pair of runs, in the order given."""
    seed_low: float | None = None
    """Interval of the mean difference with the seed as the unit, at 1 - ALPHA: speaks for other seeds too. Null below
    three seeds."""
    seed_high: float | None = None


def read_scores(path: Path, metric: str) -> dict[Key, float]:
    """Score of every item in lm-eval's samples file; ``metric`` as in EvalResult (``name`` or ``name,filter``).

    InputError where the file is not one, lacks the metric or repeats an item.
    """
    name, _, chosen = metric.partition(",")
    scores: dict[Key, float] = {}
    for number, line in enumerate(_lines(path), 1):
        where = f"{path.name} line {number}"
        try:
            row = json.loads(line)
            key = int(row["doc_id"]), str(row["doc_hash"])
            if row.get("filter", "none") != (chosen or "none"):
                continue
            score = float(row[name])
        except KeyError as error:
            raise InputError(
                where, f"no field {error}", "give lm-eval's samples file and a metric that it holds"
            ) from None
        except (ValueError, TypeError):
            raise InputError(where, "not a sample of lm-eval with a number as score", "evaluate again") from None
        if not math.isfinite(score):
            raise InputError(where, f"{name} is {score}", "evaluate again")
        if key in scores:
            raise InputError(where, f"doc_id {key[0]} is there twice", "evaluate again: one line an item is expected")
        scores[key] = score
    if not scores:
        raise InputError(path.name, f"no item scored by {metric!r}", "look at the file's 'filter' and 'metrics' fields")
    return scores


def compare_accuracy(
    baseline: Sequence[Path], candidate: Sequence[Path], metric: str, margin: float = MARGIN
) -> PairedAccuracy:
    """Compare two sides: one samples file a seed, in the same order of seeds on both.

    InputError where the numbers of files differ, or where the files do not hold the same items.
    """
    import numpy as np

    if len(baseline) != len(candidate) or not baseline:
        raise InputError(
            "paired accuracy", f"{len(baseline)} files of the baseline, {len(candidate)} of the candidate",
            "give one file a seed on both sides, in the same order",
        )  # fmt: skip
    sides = [[read_scores(path, metric) for path in paths] for paths in (baseline, candidate)]
    items = sorted(sides[0][0])
    for paths, scored in zip((baseline, candidate), sides, strict=True):
        for path, scores in zip(paths, scored, strict=True):
            _same_items(baseline[0], items, path, scores)
    scores_SI = [np.array([[scores[item] for item in items] for scores in side]) for side in sides]
    return _compare(scores_SI[0], scores_SI[1], margin)


def _compare(baseline_SI: "Array", candidate_SI: "Array", margin: float) -> PairedAccuracy:
    """Scores of shape (seeds, items)."""
    import numpy as np
    from statsmodels.stats.weightstats import DescrStatsW

    difference_SI = candidate_SI - baseline_SI
    difference_I = difference_SI.mean(axis=0)
    seeds, items = difference_SI.shape
    # Agresti and Min (Statistics in Medicine 24, 2005): half an item more in each cell of the 2 x 2 table, so that an
    # interval without a discordant item is not a point.
    adjusted = DescrStatsW(np.append(difference_I, [1, -1, 0]), np.append(np.ones(items), [0.5, 0.5, 1]))
    low, high = (float(end) for end in adjusted.tconfint_mean(alpha=ALPHA))
    tost_p, (_, worse_p, _), _ = adjusted.ttost_mean(-margin, margin)
    seed_interval: tuple[float | None, float | None] = (None, None)
    if seeds >= 3:
        ends = DescrStatsW(difference_SI.mean(axis=1)).tconfint_mean(alpha=ALPHA)
        seed_interval = float(ends[0]), float(ends[1])
    return PairedAccuracy(
        items=items,
        seeds=seeds,
        baseline=float(baseline_SI.mean()),
        candidate=float(candidate_SI.mean()),
        difference=float(difference_I.mean()),
        low=low,
        high=high,
        margin=margin,
        verdict="non-inferior" if low > -margin else "inferior" if high < -margin else "inconclusive",
        non_inferiority_p=float(worse_p),
        tost_p=float(tost_p),
        mde=float(adjusted.std) * _detectable(items),
        mcnemar=_mcnemar(baseline_SI[0], candidate_SI[0]) if seeds == 1 else None,
        by_seed=[float(mean) for mean in difference_SI.mean(axis=1)],
        seed_low=seed_interval[0],
        seed_high=seed_interval[1],
    )


def _mcnemar(baseline_I: "Array", candidate_I: "Array") -> Discordant | None:
    import numpy as np
    from statsmodels.stats.contingency_tables import mcnemar

    if not np.isin([baseline_I, candidate_I], (0, 1)).all():
        return None
    right, other = baseline_I == 1, candidate_I == 1
    cells = [[int((right & other).sum()), int((right & ~other).sum())],
             [int((~right & other).sum()), int((~right & ~other).sum())]]  # fmt: skip
    exact = cells[0][1] + cells[1][0] < EXACT_BELOW
    return Discordant(
        both_right=cells[0][0], only_baseline=cells[0][1], only_candidate=cells[1][0], neither=cells[1][1],
        p_value=float(mcnemar(cells, exact=exact).pvalue), exact=exact,
    )  # fmt: skip


@cache
def _detectable(items: int) -> float:
    """Mean difference, in standard deviations of an item's, that the t test at ALPHA finds with probability POWER."""
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().solve_power(nobs=items, alpha=ALPHA, power=POWER))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path.name, f"cannot be read: {error}", "copy the record with its evaluation files") from None


def _same_items(first: Path, items: list[Key], path: Path, scores: dict[Key, float]) -> None:
    missing, extra = set(items) - scores.keys(), scores.keys() - set(items)
    if not (missing or extra):
        return
    changed = {key[0] for key in missing} & {key[0] for key in extra}
    parts = {
        "not in it": {key[0] for key in missing} - changed,
        "only in it": {key[0] for key in extra} - changed,
        "with other content": changed,
    }
    told = "; ".join(
        f"doc_id {', '.join(map(str, sorted(ids)[:SHOWN_IDS]))}"
        + (f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else "") + f" {how}"
        for how, ids in parts.items() if ids
    )  # fmt: skip
    raise InputError(
        path.name, f"its items are not those of {first.name}: {told}", "evaluate both sides on the same task and limit"
    )
