"""Two releases judged: one verdict a metric, and whether the candidate passes.

A state that turns bad is a regression. Numbers of several processes are compared by ``bench.stats`` (Welch's t on
logarithms, Holm over all of one comparison); numbers that do not vary, directly. What cannot be told is inconclusive.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from statistics import median
from typing import Literal

from bench import stats
from bench.cell import Frozen
from bench.errors import InputError
from bench.regress.policy import Policy, Rule
from bench.regress.reading import Locked, Reading, Release

Verdict = Literal["regressed", "improved", "unchanged", "inconclusive"]
MET_IF_SILENT = "static/requirements/"
"""Demands are listed only where they are not met."""
STATES: dict[tuple[str, str], Verdict] = {
    ("good", "bad"): "regressed", ("bad", "good"): "improved", ("good", "good"): "unchanged",
    ("bad", "bad"): "unchanged",
}  # fmt: skip
ABSENT = "absent"


class MetricVerdict(Frozen):
    """What became of one metric."""

    name: str
    verdict: Verdict
    gate: bool
    """Whether a regression of it fails the check."""
    baseline: str
    """The reading, as text."""
    candidate: str
    effect: float | None = None
    """Relative change of the candidate: 0.05 is 5 % more."""
    low: float | None = None
    """Interval of the effect at ``level``."""
    high: float | None = None
    level: float | None = None
    mde: float | None = None
    """Minimum detectable effect at 80 % power; of a number that does not vary, the margin."""
    why: str = ""


class Side(Frozen):
    """Which release a side was."""

    version: str
    lock: list[Locked]


class Comparison(Frozen):
    """A candidate against a baseline."""

    schema_version: int = 1
    created: datetime
    package: str
    baseline: Side
    candidate: Side
    machine: str
    differences: list[str]
    """What else differs between the two environments, and was allowed to."""
    could_not: list[str]
    """Levels that could run on neither side, with the reason."""
    metrics: list[MetricVerdict]
    pairs: list[tuple[str, str]] = []
    """Ids of the records that speed, memory, dispatch and accuracy were judged by: baseline's and candidate's."""

    @property
    def failed(self) -> list[MetricVerdict]:
        """The regressions that fail the check."""
        return [metric for metric in self.metrics if metric.verdict == "regressed" and metric.gate]

    @property
    def exit_code(self) -> int:
        """0 passed, 1 regressed, 2 could not run."""
        return 1 if self.failed else 2 if self.could_not or not self.metrics else 0

    def count(self, verdict: Verdict) -> int:
        """Metrics with that verdict."""
        return sum(metric.verdict == verdict for metric in self.metrics)


def compare(baseline: Release, candidate: Release, policy: Policy, across: Collection[str] = ()) -> Comparison:
    """Judge every metric that one of the two has.

    InputError where they were measured by other checks, on another machine or with other settings, unless ``across``
    names the key; the comparison then says it.
    """
    olds, news = baseline.by_name | _ran(baseline), candidate.by_name | _ran(candidate)
    judged = [
        (_judge(name, olds.get(name), news.get(name), policy.rule(name))) for name in dict.fromkeys([*olds, *news])
    ]
    adjusted = iter(stats.adjust([ratio.p_value for _, ratio in judged if ratio]))
    metrics = [
        _settled(
            metric, ratio, next(adjusted), policy.rule(metric.name), (olds.get(metric.name) or Reading(name="")).better
        )
        if ratio
        else metric
        for metric, ratio in judged
    ]
    neither = [
        f"{level}: {run.could_not}" for level, run in candidate.levels.items()
        if run.could_not and level in baseline.levels and baseline.levels[level].could_not
    ]  # fmt: skip
    return Comparison(
        created=datetime.now(UTC), package=candidate.package, machine=candidate.machine,
        baseline=Side(version=baseline.version, lock=baseline.lock),
        candidate=Side(version=candidate.version, lock=candidate.lock),
        differences=differing(baseline, candidate, across), could_not=neither, metrics=metrics,
    )  # fmt: skip


def differing(baseline: Release, candidate: Release, across: Collection[str] = ()) -> list[str]:
    """What differs besides the release itself, each with both values. InputError for a key not in ``across``."""
    sides = [_conditions(release, {item.name for r in (baseline, candidate) for item in r.lock}) for release in
             (baseline, candidate)]  # fmt: skip
    found = []
    for key in sorted({*sides[0], *sides[1]}):
        was, now = (side.get(key, ABSENT) for side in sides)
        if was == now:
            continue
        if key not in across:
            mend = f"measure both with the same checks on one machine, or allow it with: --across {key}"
            raise InputError(f"{baseline.version} and {candidate.version}, {key}", f"{was} and {now}", mend)
        found.append(f"{key}: {was} and {now}")
    locks = [{item.name: item.version for item in release.lock} for release in (baseline, candidate)]
    for name in sorted(locks[0].keys() ^ locks[1].keys()):
        was, now = (lock.get(name, "the environment's own") for lock in locks)
        found.append(f"package {name}: {was} and {now}")
    return found


def _conditions(release: Release, locked: Collection[str]) -> dict[str, str]:
    """All that must agree: what may sway a reading, the checks, and each level's settings."""
    names = {f"package.{name}".replace("-", "_") for name in locked}
    facts = {key: value for key, value in release.environment.items() if key.replace("-", "_") not in names}
    options = {f"{level}.{key}": value for level, run in release.levels.items() for key, value in run.options.items()}
    return facts | options | {"checks": release.checks_sha256, "levels": ", ".join(release.levels)}


def _ran(release: Release) -> dict[str, Reading]:
    """Whether each level could run, as a state."""
    return {
        f"{level}/ran": Reading(name=f"{level}/ran", state="bad" if run.could_not else "good", text=run.could_not or "")
        for level, run in release.levels.items()
    }


def _judge(name: str, old: Reading | None, new: Reading | None, rule: Rule) -> tuple[MetricVerdict, stats.Ratio | None]:
    """The verdict; with a ratio where it waits for the adjustment over all metrics."""
    if name.startswith(MET_IF_SILENT):
        old, new = (side or Reading(name=name, state="good", text="met") for side in (old, new))
    common = {"name": name, "gate": rule.gate, "baseline": shown(old), "candidate": shown(new)}
    if old is None and new is not None and new.state == "good":
        return MetricVerdict(verdict="unchanged", why="new in the candidate", **common), None
    if old is None or new is None:
        side = "baseline" if old is None else "candidate"
        return MetricVerdict(verdict="inconclusive", why=f"the {side} has no such reading", **common), None
    if old.state is not None or new.state is not None:
        verdict = STATES.get((str(old.state), str(new.state)), "inconclusive")
        if old.state == new.state == "unknown" and old.text == new.text:
            verdict = "unchanged"
        why = new.text if verdict in ("regressed", "inconclusive") else ""
        return MetricVerdict(verdict=verdict, why=why, **common), None
    if old.exact and new.exact and old.values and new.values:
        return _exact(old, new, rule, common), None
    ratio = stats.ratio(new.values, old.values)
    return MetricVerdict(verdict="inconclusive", **common), ratio


def _exact(old: Reading, new: Reading, rule: Rule, common: dict[str, object]) -> MetricVerdict:
    was, now = median(old.values), median(new.values)
    effect = now / was - 1 if was else None
    small = abs(now - was) <= rule.floor or (effect is not None and abs(effect) <= rule.margin)
    worse = old.better == "equal" or (now > was) == (old.better == "lower")
    verdict: Verdict = "unchanged" if small or was == now else "regressed" if worse else "improved"
    return MetricVerdict(verdict=verdict, effect=effect, low=effect, high=effect, mde=rule.margin, **common)  # type: ignore[arg-type]


def _settled(
    metric: MetricVerdict, ratio: stats.Ratio, p_value: float | None, rule: Rule, better: str
) -> MetricVerdict:
    """The verdict of a ratio, given the p-value adjusted for the other metrics."""
    said = stats.verdict(ratio, rule.margin, rule.alpha, p_value)
    up: Verdict = "improved" if better == "higher" else "regressed"
    down: Verdict = "regressed" if better == "higher" else "improved"
    verdicts: dict[str, Verdict] = {"same": "unchanged", "faster": up, "slower": down}
    interval = ratio.interval(1 - rule.alpha)
    return metric.model_copy(update={
        "verdict": verdicts.get(said, "inconclusive"),
        "effect": ratio.value - 1 if ratio.value is not None else None,
        "low": interval[0] - 1 if interval else None,
        "high": interval[1] - 1 if interval else None,
        "level": 1 - rule.alpha,
        "mde": ratio.mde,
        "why": ratio.why or "",
    })  # fmt: skip


def shown(reading: Reading | None) -> str:
    """A reading as text."""
    if reading is None:
        return ABSENT
    numbers = f"{median(reading.values):.4g} {reading.unit}".strip() if reading.values else ""
    if reading.state is None:
        return numbers or reading.text or ABSENT
    evidence = numbers if numbers and not reading.text else ""
    return ": ".join(filter(None, [reading.state, reading.text or evidence]))
