"""Levels speed, memory, accuracy and dispatch: one cell with both releases, run by the harness's own executor.

Pairs of runs (``bench.regress.levels.pairs``) are looked at by the rules of ``bench.regress.sequential``; they end when
every metric is decided or the budget is spent.
"""

import math
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from bench import fingerprint, suite
from bench.accuracy import compare_accuracy
from bench.derived import METERS, Derived, Meter, derive
from bench.errors import InputError
from bench.groups import machine_name
from bench.regress.levels.pairs import SIDES, Runs, Source, check_noted
from bench.regress.overlay import Overlay
from bench.regress.policy import Policy, Rule
from bench.regress.sequential import LOOKS, MOST, Look, look
from bench.regress.verdict import Comparison, MetricVerdict, Verdict
from bench.store import Loaded, Store, whole_file

Reading = Callable[[Derived], float | None]

SPEED, GPU_WORK = "speed/tokens_per_s", "speed/gpu_work_s"
"""The second is the time of the GPU's kernels alone (bench.derived): where steps wait for the CPU, it decides first."""


def added(
    comparison: Comparison, baseline: Overlay, candidate: Overlay, name: str, budget_minutes: float, policy: Policy,
    said: Callable[[str], None], kept: Path | None = None,
) -> Comparison:  # fmt: skip
    """The comparison with the metrics of suite ``name``, which has one cell, within ``budget_minutes`` of runs.

    ``kept``: folder in which the pairs' records stay; whole pairs there are used, not run again. With a budget of 0
    nothing is run. InputError where what is kept is of other releases, another cell or another machine.
    """
    loaded = suite.load(suite.find(name))
    if len(loaded.distinct_cells) != 1:
        raise InputError(f"--suite {name}", f"has {len(loaded.distinct_cells)} cells", "give a suite of one cell")
    for side in (baseline, candidate) if kept else ():
        check_noted(side)
    with _folder(kept, budget_minutes) as folder:
        source, runs, looks = Source(folder, (baseline, candidate), loaded, said), Runs(), dict[str, Look]()
        while len(runs.pairs) < MOST and not runs.failed and not _decided(runs, looks, policy):
            if not source.advance(runs, budget_minutes):
                break
        if not (runs.pairs or runs.failed or runs.contaminated):
            raise InputError(f"--runs {kept}", "holds no whole pair", "give --budget-minutes to run some")
        return _with(comparison, runs, _metrics(runs, looks, policy))


@contextmanager
def _folder(kept: Path | None, budget_minutes: float) -> Iterator[Path]:
    """Where the pairs are; locked where some may be run."""
    if kept is None:
        if not budget_minutes:
            raise InputError("--budget-minutes 0", "judges kept runs, and there are none", "give their folder: --runs")
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
    elif budget_minutes:
        with Store(kept.resolve()).locked():
            yield kept.resolve()
    else:
        yield kept.resolve()


def _with(comparison: Comparison, runs: Runs, metrics: list[MetricVerdict]) -> Comparison:
    """The comparison with the runs' metrics, records and machine. Where nothing could be compared, it says so."""
    made_on = {machine_name(one.record.environment) for pair in runs.pairs for one in pair}
    elsewhere = sorted(made_on - {comparison.machine})
    nothing = [] if runs.pairs or "candidate" in runs.failed and len(runs.failed) == 1 else [_reasons(runs)]
    return comparison.model_copy(update={
        "machine": "; runs: ".join([comparison.machine, *elsewhere]),
        "pairs": [(base.record.id, cand.record.id) for base, cand in runs.pairs],
        "could_not": [*comparison.could_not, *(f"speed: {reason}" for reason in nothing)],
        "metrics": comparison.metrics + metrics,
    })  # fmt: skip


def _reasons(runs: Runs) -> str:
    told = [f"{side}: {why}" for side, why in runs.failed.items()]
    return "; ".join([*told, *filter(None, [runs.contaminated])])


def _peak(meter: Meter, derived: Derived) -> float | None:
    return derived.training_peaks[meter]


READINGS: dict[str, Reading] = {
    SPEED: lambda one: one.tokens_per_s,
    GPU_WORK: lambda one: one.gpu_work_s,
    **{f"memory/{meter}_peak_bytes": partial(_peak, meter) for meter in METERS},
}
"""What is compared over pairs, by metric."""
WEIGHTS = {name: 0.4 if name in (SPEED, GPU_WORK) else 0.05 for name in READINGS}
"""Each metric's part of alpha, before those that a comparison lacks are left out. Times vary from process to process
and need alpha; peaks of one release repeat exactly or nearly so, and are told apart at any level."""


def _series(runs: Runs) -> dict[str, list[float]]:
    """The pairs' log ratios (candidate over baseline) of each metric that every run has."""
    derived = [(derive(base.record), derive(cand.record)) for base, cand in runs.pairs]
    found = {name: _logs(derived, read) for name, read in READINGS.items()}
    return {name: logs for name, logs in found.items() if logs and len(logs) == len(derived)}


def _logs(derived: list[tuple[Derived, Derived]], read: Reading) -> list[float]:
    values = [(read(base), read(cand)) for base, cand in derived]
    return [math.log(cand / base) for base, cand in values if base and cand]


def _decided(runs: Runs, looks: dict[str, Look], policy: Policy) -> bool:
    """Look, where it is time; a metric that was decided stays so."""
    series = _series(runs)
    if len(runs.pairs) in LOOKS:
        for name in series:
            if name not in looks or looks[name].change == "open":
                looks[name] = _look(series, name, policy.rule(name))
    return bool(looks) and all(one.change != "open" for one in looks.values())


def _look(series: dict[str, list[float]], name: str, rule: Rule) -> Look:
    weight = WEIGHTS[name] / sum(WEIGHTS[one] for one in series)
    return look(series[name], rule.margin, alpha=rule.alpha, weight=weight)


def _metrics(runs: Runs, looks: dict[str, Look], policy: Policy) -> list[MetricVerdict]:
    metrics = [_ran(runs)]
    series = _series(runs)
    for name in series:
        rule, better = policy.rule(name), "higher" if name == SPEED else "lower"
        values = [tuple(READINGS[name](derive(one.record)) or math.nan for one in pair) for pair in runs.pairs]
        middle = [median(side) for side in zip(*values, strict=True)]
        found = looks.get(name)
        if len(runs.pairs) == 1:
            metrics.append(MetricVerdict(
                name=name, verdict="inconclusive", gate=rule.gate, baseline=f"{middle[0]:.6g}",
                candidate=f"{middle[1]:.6g}", effect=math.expm1(series[name][0]), why="one pair has no interval",
            ))  # fmt: skip
            continue
        if found is None or found.change == "open":
            found = _look(series, name, rule)
        metrics.append(_judged(name, found, middle, better, rule))
    metrics += _not_read(runs, series, policy)
    if runs.pairs:
        metrics += _dispatch(runs.pairs[0], policy) + _accuracy(runs.pairs[0], policy)
    return metrics


def _not_read(runs: Runs, series: Collection[str], policy: Policy) -> list[MetricVerdict]:
    """Metrics that some of the runs tell and some do not: with what is missing they cannot be compared."""
    made = []
    for name in (name for name in READINGS if name not in series):
        read = [
            [READINGS[name](derive(one.record)) is not None for one in side] for side in zip(*runs.pairs, strict=True)
        ]
        if any(map(any, read)):
            told = [f"read in {sum(side)} of {len(side)} runs" for side in read]
            made.append(MetricVerdict(
                name=name, verdict="inconclusive", gate=policy.rule(name).gate, baseline=told[0], candidate=told[1],
                why="not every run tells it",
            ))  # fmt: skip
    return made


def _judged(name: str, found: Look, middle: list[float], better: str, rule: Rule) -> MetricVerdict:
    worse = "less" if better == "higher" else "more"
    verdict: Verdict = "inconclusive"
    if found.change == "same" or (found.change != "open" and abs(middle[1] - middle[0]) <= rule.floor):
        verdict = "unchanged"
    elif found.change != "open":
        verdict = "regressed" if found.change == worse else "improved"
    why = f"{found.pairs} pairs" + ("" if found.pairs in LOOKS else ", ended before a look")
    return MetricVerdict(
        name=name, verdict=verdict, gate=rule.gate, baseline=f"{middle[0]:.6g}", candidate=f"{middle[1]:.6g}",
        effect=found.effect, low=found.low, high=found.high, level=found.level, mde=found.mde, why=why,
    )  # fmt: skip


def _ran(runs: Runs) -> MetricVerdict:
    """A candidate that fails where the baseline runs has regressed; one that others disturbed has not."""
    sides = {side: runs.failed.get(side, "good" if runs.pairs or runs.failed else "unknown") for side in SIDES}
    verdict: Verdict = "unchanged" if runs.pairs else "inconclusive"
    if runs.failed:
        verdict = "regressed" if list(runs.failed) == ["candidate"] else "inconclusive"
    return MetricVerdict(
        name="speed/ran", verdict=verdict, gate=True, baseline=sides["baseline"], candidate=sides["candidate"],
        why=_reasons(runs) if verdict != "unchanged" else "",
    )  # fmt: skip


def _dispatch(pair: tuple[Loaded, Loaded], policy: Policy) -> list[MetricVerdict]:
    """Kernels that the candidate no longer launches are a regression (which by default fails nothing)."""
    files = [whole_file(one, one.record.fingerprint) for one in pair]
    if not files[0] or not files[1]:
        return []
    found = fingerprint.diff(files[0], files[1])
    lost, new = ([kernel.name for kernel in side] for side in (found.only_a, found.only_b))
    counts = [f"{kernel.name} {kernel.count_a} -> {kernel.count_b}" for kernel in found.changed]
    told = [
        f"{word}: {', '.join(names)}" for word, names in (("lost", lost), ("new", new), ("counts", counts)) if names
    ]
    verdict: Verdict = "regressed" if lost else "inconclusive" if told else "unchanged"
    rule = policy.rule("dispatch/kernels")
    return [MetricVerdict(name="dispatch/kernels", verdict=verdict, gate=rule.gate, baseline="good",
                          candidate="; ".join(told) or "the same kernels", why="; ".join(told))]  # fmt: skip


def _accuracy(pair: tuple[Loaded, Loaded], policy: Policy) -> list[MetricVerdict]:
    """Non-inferiority on the items that both answered, by ``bench.accuracy``."""
    results = [one.record.eval_after for one in pair]
    if not results[0] or not results[1]:
        return []
    name = f"accuracy/{results[1].task}"
    rule = policy.rule(name)
    files = [one.folder / result.samples.path for one, result in zip(pair, results, strict=True) if result]
    found = compare_accuracy([files[0]], [files[1]], results[1].metric, rule.margin)
    verdicts: dict[str, Verdict] = {"non-inferior": "unchanged", "inferior": "regressed"}
    return [MetricVerdict(
        name=name, verdict=verdicts.get(found.verdict, "inconclusive"), gate=rule.gate, level=0.95, mde=found.mde,
        baseline=f"{found.baseline:.3f}", candidate=f"{found.candidate:.3f}", effect=found.difference, low=found.low,
        high=found.high, why=f"{found.items} items; the effect is a difference of shares",
    )]  # fmt: skip
