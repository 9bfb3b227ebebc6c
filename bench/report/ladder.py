"""The ladder's waterfall and table: where the bars go and what the cells say, from rungs made in bench.ladder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.ladder import Ladder, Ratios, Rung, ladders, shipped_order
from bench.record import Record
from bench.report.format import UNKNOWN, gib, rate, times

NOT_RUN = "not run"


@dataclass(frozen=True)
class Step:
    """One bar of a waterfall, from the level before to the rung's own, in percent of the highest level."""

    name: str
    left: float
    width: float
    kind: str
    """total: a whole bar, from zero (the first, the last, and the first after a gap); better; worse; none: no bar."""
    text: str


@dataclass(frozen=True)
class TableRow:
    """One rung as text."""

    name: str
    changes: str
    status: str
    why: str
    rate: str
    over_previous: str
    over_first: str
    peaks: list[str]
    """GiB under each meter."""
    memory_over_previous: str
    memory_over_first: str
    """NVML process meter."""
    runs: list[str]


@dataclass(frozen=True)
class LadderView:
    """What the templates place."""

    title: str
    speed: list[Step]
    memory: list[Step]
    rows: list[TableRow]


def views(records: Sequence[Record]) -> list[LadderView]:
    """The ladders of the shipped suite among records of one environment."""
    return [view(ladder) for ladder in ladders(records, shipped_order())]


def view(ladder: Ladder) -> LadderView:
    """One ladder's waterfalls and table."""
    about = ladder.shared
    tuning = "full" if about["method"] == "full" else f"{about['method']} r{about['r']}"
    weights = ", random weights" if about["source"] == "random" else ""
    return LadderView(
        title=f"{about['model']}, {tuning}, {about['precision']}, {about['batch_size']} x {about['max_length']} tokens"
        + weights,
        speed=_waterfall(ladder.rungs, lambda r: r.tokens_per_s, _speed_ratio, rate, more_is_better=True),
        memory=_waterfall(ladder.rungs, _process_peak, _memory_ratio, gib, more_is_better=False),
        rows=[_row(rung) for rung in ladder.rungs],
    )


def _waterfall(
    rungs: Sequence[Rung],
    read: Callable[[Rung], float | None],
    ratio: Callable[[Ratios | None], float | None],
    text: Callable[[float | None], str],
    *,
    more_is_better: bool,
) -> list[Step]:
    levels = [read(rung) if rung.status == "ok" else None for rung in rungs]
    highest = max((level for level in levels if level is not None), default=0.0)
    steps = []
    for i, (rung, level) in enumerate(zip(rungs, levels, strict=True)):
        before = levels[i - 1] if i else None
        if level is None:
            said = UNKNOWN if rung.status == "ok" else rung.status or NOT_RUN
            steps.append(Step(rung.name, 0.0, 0.0, "none", said))
            continue
        whole = before is None or i == len(rungs) - 1
        start = 0.0 if whole or before is None else before
        low, high = sorted((start, level))
        kind = "total" if whole else "better" if (level >= start) == more_is_better else "worse"
        said = text(level) if before is None else f"{text(level)} ({times(ratio(rung.over_previous))})"
        left, width = round(100 * low / highest, 2), round(100 * (high - low) / highest, 2)
        steps.append(Step(rung.name, left, width, kind, said))
    return steps


def _row(rung: Rung) -> TableRow:
    bound = "" if rung.status == "ok" else "≥ "
    return TableRow(
        name=rung.name,
        changes="; ".join(f"{c.field}: {c.before} → {c.after}" for c in rung.changes),
        status=rung.status or NOT_RUN,
        why=rung.message or "",
        rate=rate(rung.tokens_per_s),
        over_previous=times(_speed_ratio(rung.over_previous)),
        over_first=times(_speed_ratio(rung.over_first)),
        peaks=[UNKNOWN if peak is None else bound + gib(peak) for peak in rung.training_peaks.values()],
        memory_over_previous=times(_memory_ratio(rung.over_previous)),
        memory_over_first=times(_memory_ratio(rung.over_first)),
        runs=rung.record_ids,
    )


def _process_peak(rung: Rung) -> float | None:
    return rung.training_peaks["nvml_process"]


def _speed_ratio(ratios: Ratios | None) -> float | None:
    return ratios.tokens_per_s if ratios else None


def _memory_ratio(ratios: Ratios | None) -> float | None:
    return ratios.training_peaks["nvml_process"] if ratios else None
