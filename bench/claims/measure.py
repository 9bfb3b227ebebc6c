"""Numbers for the parts of claims, from ordinary records: contrasts of two sides, peaks, losses and accuracies.

Times are of runs that ended ok. Losses and accuracies are of every run that computed well, peaks as
bench.derived.peak_counts says: contaminated runs count for what their own process took.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median

from bench import oom, stats
from bench.accuracy import compare_accuracy
from bench.cell import Cell, Frozen
from bench.claims.claim import Part, matches
from bench.derived import METERS, OWN_METERS, Meter, derive, peak_counts, values
from bench.errors import InputError
from bench.groups import answered, machine_name
from bench.health import computed_well
from bench.parity import ParityStatus, gate
from bench.record import Record
from bench.store import Loaded

GIB = 2**30
GUARD = 0.02
"""Added to both ends of a memory reading: a peak of one process says nothing of its spread. In the published records
repeats of a cell, and cells that differ in the seed alone, lie within 1 %; NVML's samples can miss 8 ms."""
SHARED = "process peaks of contaminated runs (beside other processes, or throttled) among them"
"""The note of such a number."""


class Measure(Frozen):
    """One number that a rule judges, with what it came from."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    """Interval; null where there is none."""
    meter: Meter | None = None
    unit: str = ""
    machine: str = ""
    cells: list[str] = []
    """Slugs."""
    records: list[str] = []
    parity: ParityStatus | None = None
    """Null where the sides are not meant to be equal work."""
    why: str | None = None
    """Why the number cannot be judged."""
    note: str = ""


COMPUTED = ("vram_saving", "loss_distance")
"""Metrics of what was computed and of the memory that it took, which a contaminated run tells too."""


@dataclass(frozen=True)
class Sides:
    """Records of both sides of a contrast, from one environment, that the metric can use; others are kept apart."""

    baseline: list[Loaded]
    candidate: list[Loaded]
    failed: list[Record]

    @property
    def everything(self) -> list[Record]:
        return [one.record for one in [*self.baseline, *self.candidate]]

    def base(self, **content: object) -> Measure:
        """A measure with what is known of the sides."""
        records = self.everything or self.failed
        cell = (self.candidate[0].record if self.candidate else records[-1]).cell
        return Measure.model_validate({
            "label": _label(cell), "value": None, "machine": machine_name(records[0].environment),
            "cells": sorted({r.cell.slug for r in records}), "records": [r.id for r in records], **content,
        })  # fmt: skip


def _label(cell: Cell) -> str:
    rank = "full" if cell.method == "full" else f"r{cell.r}"
    return (
        f"{cell.model} {cell.precision} {rank}, {cell.batch_size} x {cell.gradient_accumulation_steps} rows of "
        f"{cell.max_length}{'' if cell.packing == 'wrapped' else ', packing ' + cell.packing}"
    )


def contrasts(part: Part, loaded: Sequence[Loaded]) -> Iterator[Sides]:
    """Sides that differ in the part's fields alone, one environment each; only where both sides have a record."""
    counts = computed_well if part.metric in COMPUTED else _ended_ok
    wanted = set(part.cells())
    fields = sorted({*part.baseline, *part.candidate})
    groups: dict[tuple[str, str], list[Loaded]] = defaultdict(list)
    for one in loaded:
        if one.record.cell in wanted:
            groups[one.record.cell.twin_key(*fields), one.record.environment.fingerprint].append(one)
    for group in groups.values():
        base = [one for one in group if matches(one.record.cell, part.baseline)]
        others: dict[Cell, list[Loaded]] = defaultdict(list)
        for one in group:
            if matches(one.record.cell, part.candidate):
                others[one.record.cell].append(one)
        for cand in others.values() if base else ():
            good = [[one for one in side if counts(one.record)] for side in (base, cand)]
            bad = [one.record for one in [*base, *cand] if not counts(one.record)]
            yield Sides(good[0], good[1], bad)


def of_contrasts(part: Part, loaded: Sequence[Loaded]) -> list[Measure]:
    """The part's metric of every contrast that there are records of."""
    if part.metric == "non_inferiority":
        return _accuracies(part, loaded)
    read: Callable[[Sides, Sequence[Loaded]], list[Measure]] = {
        "speedup": _speedup, "vram_saving": _savings, "checkpoint_ratio": _checkpoints, "loss_distance": _losses,
    }[part.metric]  # fmt: skip
    found = []
    for sides in contrasts(part, loaded):
        if not sides.baseline or not sides.candidate:
            last = sides.failed[-1]
            found.append(sides.base(why=f"{last.cell.backend}: {last.status}: {last.message or ''}"[:200]))
            continue
        same_work = {*part.baseline, *part.candidate} == {"backend"}
        parity = gate(sides.baseline, sides.candidate, loaded) if same_work else None
        for one in read(sides, loaded):
            why = one.why or (f"parity {parity.text}"[:300] if parity and parity.status == "failed" else None)
            found.append(one.model_copy(update={"parity": parity.status if parity else None, "why": why}))
    return found


def _ended_ok(record: Record) -> bool:
    return record.status == "ok"


def _rates(side: list[Loaded]) -> list[float]:
    return values([derive(one.record, lambda _: None) for one in side], lambda d: d.tokens_per_s)


def _speedup(sides: Sides, everything: Sequence[Loaded]) -> list[Measure]:
    ratio = stats.ratio(_rates(sides.candidate), _rates(sides.baseline))
    low, high = ratio.interval() or (None, None)
    return [sides.base(value=ratio.value, low=low, high=high, note=ratio.why or "")]


def _peaks(side: Sequence[Loaded], meter: Meter) -> list[int]:
    return values([derive(one.record, lambda _: None) for one in side], lambda d: d.training_peaks[meter])


def _telling(side: Sequence[Loaded], meter: Meter) -> list[Loaded]:
    return [one for one in side if peak_counts(one.record, meter)]


def _shared(side: Sequence[Loaded]) -> str:
    """The note of a number that contaminated runs are part of."""
    return SHARED if any(one.record.status == "contaminated" for one in side) else ""


def _savings(sides: Sides, everything: Sequence[Loaded]) -> list[Measure]:
    found = []
    for meter in METERS:
        told = [_telling(side, meter) for side in (sides.baseline, sides.candidate)]
        base, cand = (_peaks(side, meter) for side in told)
        if base and cand and min(base) > 0:
            found.append(sides.base(
                value=1 - median(cand) / median(base), meter=meter,
                low=1 - max(cand) / min(base) * (1 + GUARD), high=1 - min(cand) / max(base) * (1 - GUARD),
                note=_shared([*told[0], *told[1]]),
            ))  # fmt: skip
    return found or [sides.base(why="no memory meter on this machine")]


def _checkpoints(sides: Sides, everything: Sequence[Loaded]) -> list[Measure]:
    sizes = [
        [one.record.adapter.saved_bytes for one in side if one.record.adapter.saved_bytes]
        for side in (sides.baseline, sides.candidate)
    ]
    if not all(sizes):
        return [sides.base(why="no saved checkpoint")]
    ratio = median(sizes[0]) / median(sizes[1])
    return [sides.base(value=ratio, low=ratio, high=ratio)]


def _curve(records: Sequence[Record]) -> list[float]:
    return [median(known) for step in zip(*(r.steps.loss for r in records), strict=False)
            if (known := [loss for loss in step if loss is not None and loss > 0])]  # fmt: skip


def _distance(one: list[float], other: list[float]) -> float:
    return math.sqrt(fmean(math.log(b / a) ** 2 for a, b in zip(one, other, strict=False)))


def _losses(sides: Sides, everything: Sequence[Loaded]) -> list[Measure]:
    """RMS distance of the logarithms of the losses, over that of the baseline's two nearest seeds."""
    cell, machine = sides.baseline[0].record.cell, sides.baseline[0].record.environment.fingerprint
    seeds: dict[int, list[Record]] = defaultdict(list)
    for one in everything:
        record = one.record
        same = record.cell.model_copy(update={"seed": cell.seed}) == cell
        if same and computed_well(record) and record.environment.fingerprint == machine:
            seeds[record.cell.seed].append(record)
    curves = [_curve(records) for _, records in sorted(seeds.items())]
    own = _distance(_curve([s.record for s in sides.baseline]), _curve([s.record for s in sides.candidate]))
    if len(curves) < 2:
        return [sides.base(why="no run of the baseline with another seed to measure against")]
    yardstick = min(_distance(a, b) for a, b in combinations(curves, 2))
    ratio = own / yardstick
    note = f"losses {own:.2g} apart (RMS of log ratios); two seeds of the baseline: {yardstick:.2g}"
    return [sides.base(value=ratio, low=ratio, high=ratio, note=note)]


def _accuracies(part: Part, loaded: Sequence[Loaded]) -> list[Measure]:
    """One measure for the seeds of a cell together: of each the runs whose answers count (bench.groups)."""
    wanted, fields = set(part.cells()), sorted({*part.baseline, *part.candidate})
    groups: dict[tuple[str, str], dict[Cell, Loaded]] = defaultdict(dict)
    for one in answered(loaded):
        if (cell := one.record.cell) in wanted:
            groups[cell.twin_key(*fields, "seed"), one.record.environment.fingerprint][cell] = one
    found = []
    for group in groups.values():
        base = {cell.seed: one for cell, one in group.items() if matches(cell, part.baseline)}
        others: dict[Cell, dict[int, Loaded]] = defaultdict(dict)
        for cell, one in group.items():
            if matches(cell, part.candidate) and cell.seed in base:
                others[cell.model_copy(update={"seed": 0})][cell.seed] = one
        for cand in others.values():
            sides = Sides([base[seed] for seed in sorted(cand)], [cand[seed] for seed in sorted(cand)], [])
            measure = _paired(sides)
            if fields == ["backend"]:
                gates = [gate([b], [c], loaded) for b, c in zip(sides.baseline, sides.candidate, strict=True)]
                worst = max(gates, key=lambda parity: ("ok", "not checked", "failed").index(parity.status))
                failed = f"parity {worst.text}"[:300] if worst.status == "failed" else None
                measure = measure.model_copy(update={"parity": worst.status, "why": measure.why or failed})
            found.append(measure)
    return found


def _paired(sides: Sides) -> Measure:
    """Accuracy of the candidate less the baseline's: a run a seed on both sides, in the same order."""
    base, cand = (
        [(one.folder / one.record.eval_after.samples.path, one.record.eval_after.metric)
         for one in side if one.record.eval_after] for side in (sides.baseline, sides.candidate)
    )  # fmt: skip
    try:
        found = compare_accuracy([path for path, _ in base], [path for path, _ in cand], cand[0][1])
    except InputError as error:
        return sides.base(why=f"{error.where}: {error.what}")
    runs = "one pair of runs" if found.seeds == 1 else f"{found.seeds} seeds"
    note = f"{found.baseline:.1%} and {found.candidate:.1%} of {found.items} items; {runs}"
    return sides.base(value=found.difference, low=found.low, high=found.high, note=note)


def by_rank(part: Part, loaded: Sequence[Loaded]) -> list[Measure]:
    """Accuracy of the ranks ``rule.at`` less that of each higher rank, the same items, one environment."""
    wanted = set(part.cells())
    groups: dict[tuple[str, str], dict[int, Loaded]] = defaultdict(dict)
    for one in answered(loaded):
        if (cell := one.record.cell) in wanted:
            groups[cell.twin_key("r"), one.record.environment.fingerprint][cell.r or 0] = one
    found = []
    for ranks in groups.values():
        for low in (rank for rank in part.rule.at if rank in ranks):
            for high in sorted(rank for rank in ranks if rank > max(part.rule.at)):
                pair = _paired(Sides([ranks[high]], [ranks[low]], []))
                found.append(pair.model_copy(update={"label": f"r {low} against r {high}: {pair.label}"}))
    return found


def vram(part: Part, loaded: Sequence[Loaded]) -> list[Measure]:
    """Peak of training in GiB, by cell, environment and meter; of a run that went out of memory a lower bound, where
    it was its own (bench.oom)."""
    wanted = set(part.cells())
    groups: dict[tuple[Cell, str], list[Loaded]] = defaultdict(list)
    for one in loaded:
        if one.record.cell in wanted:
            groups[one.record.cell, one.record.environment.fingerprint].append(one)
    found = []
    for (cell, _), group in groups.items():
        good = [one for one in group if computed_well(one.record)]
        full = [one for one in group if one.record.status == "oom" and oom.own(one.record)]
        sides = Sides([], good or full, [one.record for one in group if one not in [*good, *full]])
        label = f"{_label(cell)}, {cell.backend}"
        if not (good or full):
            found.append(
                sides.base(label=label, why=f"{group[-1].record.status}: {group[-1].record.message or ''}"[:200])
            )
            continue
        for meter in METERS:
            alone = [one for one in full if meter in OWN_METERS or not oom.others(one.record)]
            told = _telling(good, meter) if good else alone
            peaks = _peaks(told, meter)
            if not peaks:
                continue
            note = _shared(told) if good else "out of memory: a lower bound"
            found.append(sides.base(
                label=label, value=median(peaks) / GIB, low=min(peaks) / GIB * (1 - GUARD), meter=meter, note=note,
                high=max(peaks) / GIB * (1 + GUARD) if good else None,
            ))  # fmt: skip
        if not _peaks(good or full, "nvml_process"):
            found.append(sides.base(label=label, why="no memory meter on this machine"))
    return found
