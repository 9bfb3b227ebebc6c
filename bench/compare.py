"""Findings: sides set against each other, from raw records to ratios, intervals and verdicts.

bench.groups says what may be compared, bench.parity whether both sides did the same work, bench.stats what the numbers
allow to be said. What has no partner is listed alone, with the reason. Nothing here renders, and a failed run is a
finding like any other.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import fingerprint, stats
from bench import parity as parity_gate
from bench.accuracy import compare_accuracy
from bench.derived import METERS, ConfigOf, Derived, Meter, derive, known_config, middle, peak_counts, values
from bench.errors import InputError
from bench.finding import (
    Accuracy,
    AccuracyFinding,
    Control,
    Failure,
    Finding,
    Findings,
    Interval,
    Memory,
    Side,
    Verdict,
)  # fmt: skip
from bench.groups import Pair, answered, by_all_but_seed, machine_name, pairs, pairs_of_sets
from bench.health import computed_well
from bench.parity import Parity
from bench.record import EvalResult, Record
from bench.store import Loaded, whole_file

__all__ = [
    "METERS",
    "ConfigOf",
    "Derived",
    "Meter",
    "compare",
    "compare_sets",
    "derive",
    "known_config",
    "machine_name",
]


@dataclass(frozen=True)
class _Side:
    """A side, its records whose times count, and those whose losses, gradients and answers do."""

    side: Side
    counted: list[Loaded]
    computed: list[Loaded]
    derived: list[Derived]


def compare(
    loaded: Sequence[Loaded],
    baseline: str = "hf-peft",
    config_of: ConfigOf = known_config,
    *,
    across: Collection[str] = (),
    include_contaminated: bool = False,
) -> Findings:
    """All that these records say of ``baseline`` against every other backend, sorted by machine, then by what most
    suites vary: one finding a pair or lone side, and one of accuracy for the seeds of a cell taken together.

    ``across`` names environment keys that may differ (see bench.groups); ``include_contaminated`` counts contaminated
    runs, and the findings say so. Parity, accuracy and the process's own peaks take contaminated runs in anyway
    (bench.health).
    """
    return _found(pairs(loaded, baseline, across), loaded, config_of, include_contaminated)


def compare_sets(
    baseline: Sequence[Loaded],
    candidate: Sequence[Loaded],
    config_of: ConfigOf = known_config,
    *,
    across: Collection[str] = (),
    include_contaminated: bool = False,
) -> Findings:
    """Two sets of records, cell by cell: the same cells run with two releases, or twice. Options as in ``compare``."""
    paired = pairs_of_sets(baseline, candidate, across)
    return _found(paired, [*baseline, *candidate], config_of, include_contaminated)


def _found(paired: list[Pair], loaded: Sequence[Loaded], config_of: ConfigOf, include_contaminated: bool) -> Findings:
    seeds = by_all_but_seed(loaded)
    made = [_finding(pair, config_of, include_contaminated, seeds) for pair in paired]
    adjusted = stats.adjust([finding.rates.p_value if finding.rates else None for finding in made])
    judged = [_judged(finding, p) for finding, p in zip(made, adjusted, strict=True)]
    return Findings(
        pairs=sorted(judged, key=_place), accuracy=sorted(_accuracies(paired), key=_place)
    )  # fmt: skip


def _place(finding: Finding | AccuracyFinding) -> tuple[object, ...]:
    cell = finding.cell
    return (finding.machine, finding.environment, cell.model, cell.precision, cell.method, cell.r or 0,
            cell.twin_key("backend"), cell.backend)  # fmt: skip


def _counts(record: Record, contaminated: bool) -> bool:
    return record.status == "ok" or (contaminated and record.status == "contaminated")


def _accuracies(paired: list[Pair]) -> list[AccuracyFinding]:
    """The run of each side whose answers count (``bench.groups.answered``), by seed."""
    seeds: dict[tuple[str, str, str], dict[int, tuple[Loaded, Loaded]]] = defaultdict(dict)
    for pair in paired:
        base, cand = answered(pair.baseline)[:1], answered(pair.candidate)[:1]
        if base and cand:
            record = cand[0].record
            key = record.cell.twin_key("seed"), record.environment.fingerprint, base[0].record.environment.fingerprint
            seeds[key][record.cell.seed] = base[0], cand[0]
    return [_accuracy_finding([found[seed] for seed in sorted(found)]) for found in seeds.values()]


def _accuracy_finding(couples: list[tuple[Loaded, Loaded]]) -> AccuracyFinding:
    base, cand = couples[0]
    result = cand.record.eval_after
    assert result is not None
    paired, why = None, ""
    try:
        files = [[_samples(couple[side]) for couple in couples] for side in (0, 1)]
        paired = compare_accuracy(files[0], files[1], result.metric)
    except InputError as error:
        why = f"{error.where}: {error.what}"
    return AccuracyFinding(
        cell=cand.record.cell,
        machine=machine_name(cand.record.environment),
        environment=cand.record.environment.fingerprint,
        baseline=base.record.cell.backend,
        task=result.task,
        metric=result.metric,
        seeds=[one.record.cell.seed for _, one in couples],
        contaminated=sum(one.record.status == "contaminated" for couple in couples for one in couple),
        record_ids=[one.record.id for couple in couples for one in couple],
        paired=paired,
        why=why,
    )


def _samples(one: Loaded) -> Path:
    assert one.record.eval_after is not None
    return one.folder / one.record.eval_after.samples.path


def _finding(pair: Pair, config_of: ConfigOf, contaminated: bool, seeds: dict[str, list[Loaded]]) -> Finding:
    first = (pair.candidate or pair.baseline)[0].record
    base, cand = (_side(side, config_of, contaminated) for side in (pair.baseline, pair.candidate))
    parity = None
    if base and cand and base.computed and cand.computed:
        controls = seeds[base.computed[0].record.cell.twin_key("seed")]
        parity = parity_gate.gate(base.computed, cand.computed, controls, config_of)
    verdict, why = _verdict(pair, base, cand, parity)
    measured = verdict == "measured" and base is not None and cand is not None
    same_work = not pair.why and not (parity and parity.status == "failed")
    rates = stats.ratio(_rates(cand), _rates(base)) if base and cand else None
    work = stats.ratio(_gpu_work(base), _gpu_work(cand)) if base and cand and measured else None
    if verdict == "parity failed" and rates and rates.value:
        why += f"; the ratio of the rates, {rates.value:.2f}, is no speedup"
    return Finding(
        cell=first.cell,
        machine=machine_name(first.environment),
        environment=first.environment.fingerprint,
        across=pair.differences,
        baseline=base.side if base else None,
        candidate=cand.side if cand else None,
        verdict=verdict,
        why=why,
        parity=parity,
        dispatch=_dispatch(base, cand),
        memory={meter: _memory(meter, base, cand, compare=same_work) for meter in METERS},
        rates=rates if measured else None,
        gpu_work=work if work and work.value else None,
        gpu_work_interval=_interval(work) if work else None,
        speedup=rates.value if measured and rates else None,
        break_even_steps=_break_even(base.side, cand.side) if measured and base and cand else None,
    )


def _judged(finding: Finding, adjusted_p: float | None) -> Finding:
    """The finding with what its ratio allows to be said, given all the others made beside it."""
    if finding.rates is None:
        return finding
    return finding.model_copy(update={
        "speed": stats.verdict(finding.rates, p_value=adjusted_p),
        "adjusted_p_value": adjusted_p,
        "speedup_interval": _interval(finding.rates),
    })  # fmt: skip


def _interval(ratio: stats.Ratio) -> Interval | None:
    ends = ratio.interval()
    return Interval(low=ends[0], high=ends[1], level=1 - stats.ALPHA) if ends else None


def _side(loaded: list[Loaded], config_of: ConfigOf, contaminated: bool) -> _Side | None:
    """The side that these records make; None where there is none. Runs that ended ok count, and contaminated ones
    where that was asked for; peaks count as bench.derived says."""
    if not loaded:
        return None
    counted = [one for one in loaded if _counts(one.record, contaminated)]
    computed = [one for one in loaded if computed_well(one.record)]
    made = [(one.record, derive(one.record, config_of)) for one in loaded]
    derived = [one for record, one in made if _counts(record, contaminated)]
    of_peaks = {
        meter: [one for record, one in made if _counts(record, contaminated) or peak_counts(record, meter)]
        for meter in METERS
    }
    last = (counted or loaded)[-1].record

    side = Side(
        backend=last.cell.backend,
        record_ids=[one.record.id for one in loaded],
        processes=len(counted),
        contaminated=sum(one.record.status == "contaminated" for one in counted),
        failures=[_failure(one.record) for one in loaded if not _counts(one.record, contaminated)],
        status="ok" if counted else last.status,
        random_weights=last.cell.source == "random",
        tokens_per_s=middle(derived, lambda d: d.tokens_per_s),
        padded_tokens_per_s=middle(derived, lambda d: d.padded_tokens_per_s),
        step_s=middle(derived, lambda d: d.step_s_median),
        gpu_work_s=middle(derived, lambda d: d.gpu_work_s),
        gpu_share=middle(derived, lambda d: d.gpu_share),
        mfu=middle(derived, lambda d: d.mfu),
        startup_s=middle(derived, lambda d: d.startup_s),
        unsettled=sum(d.settled is False for d in derived),
        contaminated_peaks=len(of_peaks["nvml_process"]) - len(derived),
        training_peaks={meter: _spread(of_peaks[meter], meter) for meter in METERS},
        control=_control(derived),
        accuracy_before=_accuracy([one.record.eval_before for one in computed]),
        accuracy_after=_accuracy([one.record.eval_after for one in computed]),
    )
    return _Side(side=side, counted=counted, computed=computed, derived=derived)


def _control(derived: list[Derived]) -> Control | None:
    """The side against itself: its runs in ABBA order as if they were two backends. Null below 3 runs a half."""
    rates = values(derived, lambda d: d.tokens_per_s)
    first, second = stats.abba_halves(rates)
    if len(rates) != len(derived) or min(len(first), len(second)) < stats.MIN_PROCESSES:
        return None
    ratio = stats.ratio(first, second)
    return Control(ratio=ratio, verdict=stats.verdict(ratio))


def _failure(record: Record) -> Failure:
    return Failure(record_id=record.id, status=record.status, phase=record.failed_phase, message=record.message)


def _verdict(pair: Pair, base: _Side | None, cand: _Side | None, parity: Parity | None) -> tuple[Verdict, str]:
    """A run that failed says so first; then a missing partner; then unlike work."""
    down = [one.side for one in (base, cand) if one and not one.counted]
    if down:
        reasons = [_reason(side) for side in down] + ([pair.why] if pair.why else [])
        unsupported = all(side.status == "unsupported" for side in down)
        return ("unsupported" if unsupported else "failed"), "; ".join(reasons)
    if pair.why:
        return "not comparable", pair.why
    if parity and parity.status == "failed":
        return "parity failed", parity.text
    if untimed := [one.side.backend for one in (base, cand) if one and one.side.tokens_per_s is None]:
        return "not comparable", f"no timed step of {', '.join(untimed)}"
    return "measured", ""


def _dispatch(base: _Side | None, cand: _Side | None) -> fingerprint.Difference | None:
    """How the kernels of one backend changed between two sides; two backends are meant to differ."""
    if not base or not cand or base.side.backend != cand.side.backend:
        return None
    files = [
        next((file for one in side.counted if (file := whole_file(one, one.record.fingerprint))), None)
        for side in (base, cand)
    ]
    return fingerprint.diff(files[0], files[1]) if files[0] and files[1] else None


def _reason(side: Side) -> str:
    last = side.failures[-1]
    where = f" in {last.phase}" if last.phase else ""
    return f"{side.backend}: {last.status}{where}" + (f": {last.message}" if last.message else "")


def _accuracy(results: list[EvalResult | None]) -> Accuracy | None:
    known = [result for result in results if result]
    if not known:
        return None
    one = known[-1]
    return Accuracy(
        task=one.task,
        metric=one.metric,
        value=median(result.value for result in known),
        stderr=one.stderr if len(known) == 1 else None,
        items=one.items,
    )


def _memory(meter: Meter, base: _Side | None, cand: _Side | None, compare: bool) -> Memory:
    """Savings from the medians, and from the peaks that lie furthest apart."""
    one, other = (side.side.training_peaks[meter] if side else None for side in (base, cand))
    if not compare or one is None or other is None or not one.minimum:
        return Memory(baseline=one, candidate=other)
    return Memory(
        baseline=one,
        candidate=other,
        saving=1 - other.median / one.median,
        least=1 - other.maximum / one.minimum,
        most=1 - other.minimum / one.maximum,
    )


def _spread(derived: list[Derived], meter: Meter) -> stats.Spread | None:
    peaks = values(derived, lambda d: d.training_peaks[meter])
    return stats.spread(peaks) if peaks else None


def _rates(side: _Side) -> list[float]:
    return values(side.derived, lambda d: d.tokens_per_s)


def _gpu_work(side: _Side) -> list[float]:
    return values(side.derived, lambda d: d.gpu_work_s)


def _break_even(base: Side, cand: Side) -> float | None:
    if None in (base.startup_s, cand.startup_s, base.step_s, cand.step_s):
        return None
    dearer_s, saved_s = cand.startup_s - base.startup_s, base.step_s - cand.step_s  # type: ignore[operator]
    return dearer_s / saved_s if dearer_s > 0 and saved_s > 0 else None
