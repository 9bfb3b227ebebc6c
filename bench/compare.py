"""Findings: groups of records set side by side, from raw records to ratios, never from unlike ones.

Records of one cell in one environment are repeats of each other and form a side. A pair is two sides whose cells are
equal in all but the backend and whose environments are equal in everything that may sway a measurement. What has no
partner is listed alone, with the reason. Nothing here renders, and a failed run is a finding like any other.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from bench.cell import Frozen
from bench.derived import METERS, ConfigOf, Derived, Meter, derive, known_config
from bench.environment import Environment
from bench.finding import CONFIDENCE, Accuracy, Failure, Finding, Interval, Memory, Parity, Side, Verdict
from bench.record import EvalResult, Record

__all__ = [
    "METERS", "ConfigOf", "Derived", "Finding", "Meter", "Pair", "derive", "findings", "known_config", "machine_name",
    "pairs",
]  # fmt: skip

RESAMPLES = 9_999


class Pair(Frozen):
    """Records of both sides; one of the lists is empty where there is no partner, and ``why`` says so."""

    baseline: list[Record]
    candidate: list[Record]
    why: str = ""


def machine_name(environment: Environment) -> str:
    """What a reader calls the machine: its GPUs, else its processor."""
    names = [gpu.name for gpu in environment.gpus]
    if not names:
        return f"{environment.cpu}, {environment.cpu_cores or '?'} cores, no GPU"
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def pairs(records: Sequence[Record], baseline: str = "hf-peft") -> list[Pair]:
    """Every record exactly once as candidate or alone; a baseline side recurs with each of its candidates."""
    groups: dict[tuple[str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda r: r.id):
        key = (record.cell.twin_key("backend"), record.environment.fingerprint)
        groups[key][record.cell.backend].append(record)

    found = []
    for (twin, fingerprint), sides in groups.items():
        elsewhere = [other for key, other in groups.items() if key[0] == twin and key[1] != fingerprint]
        base, others = sides.get(baseline, []), [rs for name, rs in sides.items() if name != baseline]
        if base and others:
            found += [Pair(baseline=base, candidate=other) for other in others]
        elif base:
            partners = [rs[0] for other in elsewhere for name, rs in other.items() if name != baseline]
            found.append(Pair(baseline=base, candidate=[], why=_alone(base[0], "another backend", partners)))
        else:
            partners = [other[baseline][0] for other in elsewhere if baseline in other]
            found += [Pair(baseline=[], candidate=rs, why=_alone(rs[0], baseline, partners)) for rs in others]
    return found


def findings(
    records: Sequence[Record], baseline: str = "hf-peft", config_of: ConfigOf = known_config
) -> list[Finding]:  # fmt: skip
    """One finding a pair or lone side, sorted by machine, then by what most suites vary."""
    found = [_finding(pair, config_of) for pair in pairs(records, baseline)]
    return sorted(found, key=lambda f: (f.machine, f.environment, f.cell.model, f.cell.precision, f.cell.method,
                                        f.cell.r or 0, f.cell.twin_key("backend"), f.cell.backend))  # fmt: skip


def _alone(record: Record, partner: str, elsewhere: list[Record]) -> str:
    """Why a side has no partner; names the keys of the nearest environment that has one."""
    if not elsewhere:
        return f"no record of this cell with {partner}"
    mine = record.environment.comparable()
    theirs = [other.environment.comparable() for other in elsewhere]
    differing = min(([k for k in sorted(mine | o) if mine.get(k) != o.get(k)] for o in theirs), key=len)
    nearest = next(o for o in theirs if all(mine.get(k) == o.get(k) for k in (mine | o).keys() - set(differing)))
    changes = "; ".join(
        f"{key}: {mine.get(key, 'absent')} here, {nearest.get(key, 'absent')} there" for key in differing
    )
    return f"its partner ran in another environment ({changes})"


def _finding(pair: Pair, config_of: ConfigOf) -> Finding:
    first = (pair.candidate or pair.baseline)[0]
    base_ok, base = _side(pair.baseline, config_of)
    cand_ok, cand = _side(pair.candidate, config_of)
    parity = _parity(pair.baseline, pair.candidate) if base_ok and cand_ok else None
    verdict, why = _verdict(pair, base, cand, parity)
    shared: dict[str, Any] = {
        "cell": first.cell, "machine": machine_name(first.environment), "environment": first.environment.fingerprint,
        "baseline": base, "candidate": cand, "verdict": verdict, "why": why, "parity": parity,
        "memory": {meter: _memory(meter, base_ok, cand_ok, compare=verdict == "measured") for meter in METERS},
    }  # fmt: skip
    if verdict != "measured" or base is None or cand is None:
        return Finding(**shared)
    rates = _values(cand_ok, lambda d: d.tokens_per_s), _values(base_ok, lambda d: d.tokens_per_s)
    return Finding(
        **shared,
        speedup=_ratio(cand.tokens_per_s, base.tokens_per_s),
        speedup_interval=_interval(*rates),
        no_interval_because=None if min(map(len, rates)) > 1 else "1 process a side",
        break_even_steps=_break_even(base, cand),
    )


def _side(records: list[Record], config_of: ConfigOf) -> tuple[list[Derived], Side | None]:
    """Derived statistics of the runs that ended ok, and the side they make; None where there is no record."""
    if not records:
        return [], None
    ok = [record for record in records if record.status == "ok"]
    derived = [derive(record, config_of) for record in ok]
    last = (ok or records)[-1]

    def mid(read: Callable[[Derived], float | None]) -> float | None:
        values = _values(derived, read)
        return median(values) if values else None

    peaks = {meter: mid(_peak_under(meter)) for meter in METERS}
    return derived, Side(
        backend=last.cell.backend,
        record_ids=[record.id for record in records],
        processes=len(ok),
        failures=[
            Failure(record_id=r.id, status=r.status, phase=r.failed_phase, message=r.message)
            for r in records
            if r.status != "ok"
        ],
        status=last.status,
        random_weights=last.cell.source == "random",
        tokens_per_s=mid(lambda d: d.tokens_per_s),
        padded_tokens_per_s=mid(lambda d: d.padded_tokens_per_s),
        step_s=mid(lambda d: d.step_s_median),
        mfu=mid(lambda d: d.mfu),
        startup_s=mid(lambda d: d.startup_s),
        training_peaks={meter: None if peak is None else round(peak) for meter, peak in peaks.items()},
        accuracy_before=_accuracy([r.eval_before for r in ok]),
        accuracy_after=_accuracy([r.eval_after for r in ok]),
    )


def _verdict(pair: Pair, base: Side | None, cand: Side | None, parity: Parity | None) -> tuple[Verdict, str]:
    """A run that failed says so first; then a missing partner; then unlike work."""
    down = [side for side in (base, cand) if side and side.status != "ok"]
    if down:
        reasons = [_reason(side) for side in down] + ([pair.why] if pair.why else [])
        unsupported = all(side.status == "unsupported" for side in down)
        return ("unsupported" if unsupported else "failed"), "; ".join(reasons)
    if pair.why:
        return "not comparable", pair.why
    if parity and parity.same_stream is False:
        return "not comparable", "the two sides trained on different token streams"
    if untimed := [side.backend for side in (base, cand) if side and side.tokens_per_s is None]:
        return "not comparable", f"no timed step of {', '.join(untimed)}"
    return "measured", ""


def _reason(side: Side) -> str:
    last = side.failures[-1]
    where = f" in {last.phase}" if last.phase else ""
    return f"{side.backend}: {last.status}{where}" + (f": {last.message}" if last.message else "")


def _weights(record: Record) -> str | None:
    """What tells weights apart: their hash, or for random ones the seed and device that drew them."""
    return None if record.model is None else record.model.weights_sha256 or record.model.source_detail


def _parity(baseline: list[Record], candidate: list[Record]) -> Parity:
    base, cand = ([r for r in side if r.status == "ok"] for side in (baseline, candidate))
    both = base + cand
    seen = [r.data.stream_checked_in_forward if r.data else None for r in both]
    losses = [median(known) if (known := _first_losses(side)) else None for side in (base, cand)]
    difference = None if losses[0] is None or losses[1] is None else losses[1] - losses[0]
    return Parity(
        same_train_data=_same([r.data.train_sha256 if r.data else None for r in both]),
        same_weights=_same([_weights(r) for r in both]),
        same_initial_adapter=_same([r.adapter.initial_sha256 for r in both]),
        same_stream=_same([r.data.stream_sha256 if r.data else None for r in both]),
        stream_seen_by_model=None if None in seen else all(seen),
        step1_loss_baseline=losses[0],
        step1_loss_candidate=losses[1],
        step1_loss_difference=difference,
    )


def _first_losses(records: list[Record]) -> list[float]:
    return [loss for r in records if r.steps.loss and (loss := r.steps.loss[0]) is not None]


def _same(hashes: Sequence[str | None]) -> bool | None:
    return None if None in hashes else len(set(hashes)) == 1


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


def _memory(meter: Meter, base: list[Derived], cand: list[Derived], compare: bool) -> Memory:
    base_values = _values(base, _peak_under(meter))
    cand_values = _values(cand, _peak_under(meter))
    base_mid, cand_mid = (median(v) if v else None for v in (base_values, cand_values))
    ratio = _ratio(cand_mid, base_mid) if compare else None
    interval = _interval(cand_values, base_values) if compare else None
    return Memory(
        baseline_bytes=None if base_mid is None else round(base_mid),
        candidate_bytes=None if cand_mid is None else round(cand_mid),
        saving=None if ratio is None else 1 - ratio,
        interval=Interval(low=1 - interval.high, high=1 - interval.low) if interval else None,
    )


def _peak_under(meter: Meter) -> Callable[[Derived], float | None]:
    return lambda derived: derived.training_peaks[meter]


def _values(derived: list[Derived], read: Callable[[Derived], float | None]) -> list[float]:
    return [value for d in derived if (value := read(d)) is not None]


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator


def _interval(numerators: list[float], denominators: list[float]) -> Interval | None:
    """Of the ratio of medians; None with fewer than two processes on a side."""
    if min(len(numerators), len(denominators)) < 2 or 0 in denominators:
        return None
    import numpy as np
    from scipy.stats import bootstrap

    result = bootstrap(
        (numerators, denominators),
        lambda n, d, axis: np.median(n, axis=axis) / np.median(d, axis=axis),
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(low=float(result.low), high=float(result.high))


def _break_even(base: Side, cand: Side) -> float | None:
    if None in (base.startup_s, cand.startup_s, base.step_s, cand.step_s):
        return None
    dearer_s, saved_s = cand.startup_s - base.startup_s, base.step_s - cand.step_s  # type: ignore[operator]
    return dearer_s / saved_s if dearer_s > 0 and saved_s > 0 else None
