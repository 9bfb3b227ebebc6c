"""Accuracy by rank from records, and the smallest rank that is not worse than the best.

Ranks are compared on the same items (``bench.accuracy``), within one model, task, backend and recipe.
"""

from collections.abc import Sequence

from bench.accuracy import MARGIN, compare_accuracy
from bench.cell import Frozen
from bench.derived import known_config
from bench.errors import InputError
from bench.groups import answered
from bench.store import Loaded


class RankScore(Frozen):
    """One rank's accuracy after training, less that of the best rank on the same items."""

    r: int
    accuracy: float
    difference: float
    low: float
    high: float
    """Interval of the difference at 95 %."""
    not_worse: bool
    """low > -margin."""
    record_ids: list[str]


class RankAccuracy(Frozen):
    """Accuracy by rank of one model, task and backend."""

    model: str
    model_type: str
    task: str
    backend: str
    items: int
    seeds: int
    margin: float
    ranks: list[RankScore]

    @property
    def enough(self) -> int:
        """The smallest rank that is not worse than the best by more than the margin."""
        return min(score.r for score in self.ranks if score.not_worse)


def accuracy_by_rank(loaded: Sequence[Loaded], margin: float = MARGIN) -> list[RankAccuracy]:
    """One entry a group of records that differ in rank (and seed) alone and were scored on the same items."""
    groups: dict[str, list[Loaded]] = {}
    for item in answered(loaded):
        cell = item.record.cell
        if cell.r and cell.method == "lora":
            groups.setdefault(cell.twin_key("r", "seed"), []).append(item)
    made = [_group(items, margin) for items in groups.values()]
    return sorted((one for one in made if one), key=lambda one: (one.model, one.task, one.backend))


def _group(items: Sequence[Loaded], margin: float) -> RankAccuracy | None:
    by_rank: dict[int, dict[int, Loaded]] = {}
    for item in items:  # of other environments too: the oldest counts
        by_rank.setdefault(item.record.cell.r or 0, {}).setdefault(item.record.cell.seed, item)
    seeds = sorted(set.intersection(*(set(of) for of in by_rank.values())))
    if len(by_rank) < 2 or not seeds:
        return None
    first = items[0].record
    evaluation = first.eval_after
    assert evaluation is not None

    def files(r: int) -> list[Loaded]:
        return [by_rank[r][seed] for seed in seeds]

    def mean(r: int) -> float:
        scores = [item.record.eval_after.value for item in files(r) if item.record.eval_after]
        return sum(scores) / len(scores)

    best = max(by_rank, key=lambda r: (mean(r), -r))
    scores = []
    for r in sorted(by_rank):
        sides = [[i.folder / i.record.eval_after.samples.path for i in files(side) if i.record.eval_after]
                 for side in (best, r)]  # fmt: skip
        try:
            paired = compare_accuracy(sides[0], sides[1], evaluation.metric, margin)
        except InputError:
            return None
        scores.append(RankScore(
            r=r, accuracy=paired.candidate, difference=paired.difference, low=paired.low, high=paired.high,
            not_worse=r == best or paired.low > -margin, record_ids=[i.record.id for i in files(r)],
        ))  # fmt: skip
    config = known_config(first) or {}
    return RankAccuracy(
        model=first.cell.model, model_type=str(config.get("model_type")), task=first.cell.task,
        backend=first.cell.backend, items=evaluation.items, seeds=len(seeds), margin=margin, ranks=scores,
    )  # fmt: skip


def nearest(
    known: Sequence[RankAccuracy], model: str, model_type: str, backend: str
) -> tuple[RankAccuracy | None, str]:
    """The entry that says most about a model, and in words how near it is."""
    if not known:
        return None, "no record has the accuracy of several ranks"

    def distance(one: RankAccuracy) -> tuple[bool, bool, bool]:
        return one.model != model, one.model_type != model_type, one.backend != backend

    one = min(known, key=distance)
    told = f"{one.model}, task {one.task}, {one.items} items, {one.seeds} seed{'s' * (one.seeds > 1)}, {one.backend}"
    if one.model == model:
        return one, told
    return one, f"{told}: another model, since nothing nearer was measured; harder tasks may need larger ranks"
