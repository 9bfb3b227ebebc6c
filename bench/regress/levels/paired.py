"""Levels speed, memory, accuracy and dispatch: one cell with both releases, run by the harness's own executor.

Each run is ``peftmark run`` in a fresh process that sees one release. Pairs are run A B, B A, ... and looked at by the
rules of ``bench.regress.sequential``; they end when every metric is decided or the budget is spent.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench import fingerprint, store, suite
from bench.accuracy import compare_accuracy
from bench.derived import METERS, Derived, Meter, derive
from bench.errors import InputError
from bench.executor import BAD
from bench.regress.overlay import Overlay
from bench.regress.policy import Policy, Rule
from bench.regress.process import run
from bench.regress.sequential import LOOKS, MOST, Look, look
from bench.regress.verdict import Comparison, MetricVerdict, Verdict
from bench.store import Loaded, whole_file

Reading = Callable[[Derived], float | None]

SPEED, GPU_WORK = "speed/tokens_per_s", "speed/gpu_work_s"
"""The second is the time of the GPU's kernels alone (bench.derived): where steps wait for the CPU, it decides first."""
GRACE_S = 120.0
"""Beyond the suite's own time limit, for imports and preparation."""


@dataclass
class Runs:
    """What was run so far."""

    pairs: list[tuple[Loaded, Loaded]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Side to the reason why it could not run."""
    seconds: float = 0.0


def added(
    comparison: Comparison, baseline: Overlay, candidate: Overlay, name: str, budget_minutes: float, policy: Policy,
    said: Callable[[str], None],
) -> Comparison:  # fmt: skip
    """The comparison with the metrics of suite ``name``, which has one cell, within ``budget_minutes`` of runs."""
    loaded = suite.load(suite.find(name))
    if len(loaded.distinct_cells) != 1:
        raise InputError(f"--suite {name}", f"has {len(loaded.distinct_cells)} cells", "give a suite of one cell")
    with tempfile.TemporaryDirectory() as folder:
        runs, looks = Runs(), dict[str, Look]()
        while len(runs.pairs) < MOST and not runs.failed and not _decided(runs, looks, policy):
            longest = runs.seconds / len(runs.pairs) if runs.pairs else 0.0
            if runs.pairs and runs.seconds + longest > 60 * budget_minutes:
                said(f"the budget of {budget_minutes:g} min ends after {len(runs.pairs)} pairs")
                break
            _run_pair(runs, (baseline, candidate), loaded, Path(folder), said)
        return comparison.model_copy(update={"metrics": comparison.metrics + _metrics(runs, looks, policy)})


def _run_pair(
    runs: Runs, sides: tuple[Overlay, Overlay], loaded: suite.Suite, folder: Path, said: Callable[[str], None]
) -> None:
    number, start = len(runs.pairs), time.monotonic()
    made: dict[int, Loaded] = {}
    for which in (0, 1) if number % 2 == 0 else (1, 0):
        label = ("baseline", "candidate")[which]
        said(f"pair {number + 1}: {label} {sides[which].version}")
        out = folder / f"{label}-{number}"
        command = [sys.executable, "-m", "bench", "run", str(loaded.path.resolve()), "--out", str(out), "--quiet"]
        ended = run(command, [sides[which].folder], loaded.timeout_s + GRACE_S)
        records = store.load(out)[0] if out.is_dir() else []
        if not records:
            runs.failed[label] = ended.why if ended.code is not None else "hangs"
        elif records[-1].record.status in (*BAD, "oom", "unsupported"):
            record = records[-1].record
            runs.failed[label] = f"{record.status}: {record.message or ''}"
        else:
            made[which] = records[-1]
    runs.seconds += time.monotonic() - start
    if len(made) == 2:
        runs.pairs.append((made[0], made[1]))


def _peak(meter: Meter, derived: Derived) -> float | None:
    return derived.training_peaks[meter]


READINGS: dict[str, Reading] = {
    SPEED: lambda one: one.tokens_per_s,
    GPU_WORK: lambda one: one.gpu_work_s,
    **{f"memory/{meter}_peak_bytes": partial(_peak, meter) for meter in METERS},
}
"""What is compared over pairs, by metric."""


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
    return look(series[name], rule.margin, alpha=rule.alpha, metrics=len(series))


def _metrics(runs: Runs, looks: dict[str, Look], policy: Policy) -> list[MetricVerdict]:
    metrics = [_ran(runs)]
    series = _series(runs) if len(runs.pairs) > 1 else {}
    for name in series:
        rule, better = policy.rule(name), "higher" if name == SPEED else "lower"
        values = [tuple(READINGS[name](derive(one.record)) or math.nan for one in pair) for pair in runs.pairs]
        middle = [sorted(side)[len(side) // 2] for side in zip(*values, strict=True)]
        found = looks.get(name)
        if found is None or found.change == "open":
            found = _look(series, name, rule)
        metrics.append(_judged(name, found, middle, better, rule))
    if runs.pairs:
        metrics += _dispatch(runs.pairs[0], policy) + _accuracy(runs.pairs[0], policy)
    return metrics


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
    """A candidate that fails where the baseline runs has regressed."""
    sides = {side: runs.failed.get(side, "good") for side in ("baseline", "candidate")}
    verdict: Verdict = "unchanged"
    if runs.failed:
        verdict = "regressed" if list(runs.failed) == ["candidate"] else "inconclusive"
    return MetricVerdict(
        name="speed/ran", verdict=verdict, gate=True, baseline=sides["baseline"], candidate=sides["candidate"],
        why="; ".join(runs.failed.values()),
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
