"""The ladder on the page: waterfalls of speed and memory and the table of rungs, from rungs made in bench.ladder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.ladder import Ladder, Ratios, Rung
from bench.report.charts.theme import GREEN, GREY, VERMILLION, finish, named, room
from bench.report.format import GIB, UNKNOWN, gib, one_line, rate, times
from bench.report.rows import METER_NAMES
from bench.report.sections import Cell, Chart, Control, Link, Option, Row, Section, Table, columns_of
from bench.report.view import View, anchor

NOT_RUN = "not run"
SPEED, MEMORY = "ladder_speed", "ladder_memory"
KINDS = {"whole": GREY, "better": GREEN, "worse": VERMILLION}


@dataclass(frozen=True)
class Step:
    """One bar of a waterfall, from the level before to the rung's own; no bar where ``kind`` is none."""

    name: str
    start: float | None
    end: float | None
    kind: str
    """whole: from zero (the first, the last, and the first after a gap); better; worse; none."""
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
    """What is placed."""

    title: str
    speed: list[Step]
    """Tokens/s."""
    memory: list[Step]
    """GiB, NVML process."""
    rows: list[TableRow]


def view(ladder: Ladder) -> LadderView:
    """One ladder's waterfalls and table."""
    about = ladder.shared
    tuning = "full" if about["method"] == "full" else f"{about['method']} r{about['r']}"
    weights = ", random weights" if about["source"] == "random" else ""
    return LadderView(
        title=f"{about['model']}, {tuning}, {about['precision']}, {about['batch_size']} x {about['max_length']} tokens"
        + weights,
        speed=_waterfall(ladder.rungs, lambda r: r.tokens_per_s, _speed_ratio, rate, more_is_better=True),
        memory=_waterfall(ladder.rungs, _process_gib, _memory_ratio, lambda v: f"{v:.2f}", more_is_better=False),
        rows=[_row(rung) for rung in ladder.rungs],
    )


def section(page: View) -> Section | None:
    """Every ladder of the page; None without one."""
    found = [(ladder, view(ladder)) for group in page.groups for ladder in group.ladders]
    if not found:
        return None
    charts = [
        _chart(SPEED, "Rung by rung: tokens/s", "tokens/s", found, lambda v: v.speed),
        _chart(MEMORY, "Rung by rung: peak memory of training", "NVML process, GiB", found, lambda v: v.memory),
    ]
    data = {
        SPEED: columns_of(_bars(found, lambda v: v.speed)),
        MEMORY: columns_of(_bars(found, lambda v: v.memory)),
    }
    return Section(
        id="ladder", title="Ladder: what the difference is made of",
        text="From the plainest baseline to the candidate, one change a rung.",
        charts=charts, tables=[_table(ladder, shown) for ladder, shown in found], data=data,
    )  # fmt: skip


Found = Sequence[tuple[Ladder, LadderView]]
Read = Callable[[LadderView], list[Step]]


def _chart(table: str, title: str, axis: str, found: Found, read: Read) -> Chart:
    start = max(range(len(found)), key=lambda i: sum(step.kind != "none" for step in read(found[i][1])))
    shown = found[start][1]
    told = "; ".join(f"{step.name} {step.text}" for step in read(shown))
    options = [
        Option(one.title, [number], {key: ladder.shared[key] for key in ("model", "precision")})
        for number, (ladder, one) in enumerate(found)
    ]
    return Chart(
        id=table.replace("_", "-"), title=title,
        see="Grey bars start at zero; green is what a rung gained on the one before, orange what it lost. A "
            "rung that failed has no bar and says how it ended.",
        alt=f"{shown.title}: {told}.", spec=_spec(table, axis), tables=[table],
        columns={"rung": "rung", "text": axis, "kind": "against the rung before"},
        control=Control("Ladder", "ladder", options, start),
    )  # fmt: skip


def _bars(found: Found, read: Read) -> list[dict[str, Any]]:
    return [
        {"ladder": number, "model": ladder.shared["model"], "precision": ladder.shared["precision"],
         "href": f"#{anchor(rung.record_ids[-1])}" if rung.record_ids else "", "order": i,
         "rung": f"{i + 1}. {step.name}", "start": step.start, "end": step.end, "kind": step.kind, "text": step.text,
         "at": max(step.start or 0, step.end or 0), "lost": step.kind == "none"}
        for number, (ladder, shown) in enumerate(found)
        for i, (rung, step) in enumerate(zip(ladder.rungs, read(shown), strict=True))
    ]  # fmt: skip


def _spec(table: str, axis: str) -> dict[str, Any]:
    import altair as alt

    base = alt.Chart(named(table))
    y = alt.Y("rung:N", sort=alt.EncodingSortField("order", op="min"), title=None)
    x = alt.X("start:Q", title=axis, scale=alt.Scale(zero=True))
    shown = [alt.Tooltip("rung:N"), alt.Tooltip("text:N", title=axis), alt.Tooltip("kind:N", title="against before")]
    return finish(alt.layer(
        base.transform_filter("!datum.lost").mark_bar(height=13).encode(
            y=y, x=x, x2="end:Q", tooltip=shown,
            color=alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS), range=list(KINDS.values()))),
        ),
        base.mark_text(align="left", dx=6).encode(
            y=y, x=alt.X("at:Q"), text="text:N", tooltip=shown,
            color=alt.condition("datum.lost", alt.value(VERMILLION), alt.value("currentColor")),
        ),
        room(base, "x", "at", 1.2),
    ))  # fmt: skip


def _table(ladder: Ladder, shown: LadderView) -> Table:
    columns = ["Rung", "Changed", "Status", ">tokens/s", ">over previous", ">over first",
               *(f">{name}, GiB" for name in METER_NAMES.values()), ">process over previous",
               ">over first"]  # fmt: skip
    about = {key: ladder.shared[key] for key in ("model", "precision")}
    rows = []
    for number, row in enumerate(shown.rows, 1):
        links = [Link(f"run {i}", f"#{anchor(id)}") for i, id in enumerate(row.runs, 1)]
        status = Cell(tag=row.status, sub=one_line(row.why))
        numbers = [
            row.rate,
            row.over_previous,
            row.over_first,
            *row.peaks,
            row.memory_over_previous,
            row.memory_over_first,
        ]
        cells = [
            Cell(f"{number}. {row.name}", links=links),
            Cell(row.changes),
            status,
            *(Cell(text) for text in numbers),
        ]
        rows.append(Row(cells, about=about))
    note = "Process: the NVML process meter. ≥: the run failed there, so the peak is a lower bound."
    return Table(columns, rows, title=shown.title, note=note)


def _waterfall(
    rungs: Sequence[Rung],
    read: Callable[[Rung], float | None],
    ratio: Callable[[Ratios | None], float | None],
    text: Callable[[float], str],
    *,
    more_is_better: bool,
) -> list[Step]:
    levels = [read(rung) if rung.status == "ok" else None for rung in rungs]
    steps = []
    for i, (rung, level) in enumerate(zip(rungs, levels, strict=True)):
        before = levels[i - 1] if i else None
        if level is None:
            said = UNKNOWN if rung.status == "ok" else rung.status or NOT_RUN
            steps.append(Step(rung.name, None, None, "none", said))
            continue
        whole = before is None or i == len(rungs) - 1
        start = 0.0 if whole or before is None else before
        kind = "whole" if whole else "better" if (level >= start) == more_is_better else "worse"
        said = text(level) if before is None else f"{text(level)} ({times(ratio(rung.over_previous))})"
        steps.append(Step(rung.name, start, level, kind, said))
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


def _process_gib(rung: Rung) -> float | None:
    peak = rung.training_peaks["nvml_process"]
    return None if peak is None else peak / GIB


def _speed_ratio(ratios: Ratios | None) -> float | None:
    return ratios.tokens_per_s if ratios else None


def _memory_ratio(ratios: Ratios | None) -> float | None:
    return ratios.training_peaks["nvml_process"] if ratios else None
