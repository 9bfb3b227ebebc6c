"""The sections of the page, in order; each is left out where it has nothing to show."""

from collections.abc import Callable, Sequence

from bench.report import ladder
from bench.report.charts import accuracy, memory, speed, training
from bench.report.format import UNKNOWN, number, one_line
from bench.report.rows import METER_NAMES, accuracy_row
from bench.report.sections import Cell, Chart, Columns, Link, Row, Section, Table
from bench.report.view import FindingView, RecordView, View, anchor

CONTAMINATED = "contaminated"
Made = tuple[Chart, dict[str, Columns]] | None


def sections(view: View, added: Sequence[Section] = ()) -> list[Section]:
    """Everything that the records give rise to; ``added`` ones of other modules stand before the runs that failed."""
    measured = [_speed(view), _memory(view), _accuracy(view), _choice(view), _training(view), ladder.section(view)]
    rest = [_alone(view), _failures(view), _disturbed(view), _records(view)]
    return [one for one in [*measured, *added, *rest] if one]


def _section(id: str, title: str, text: str, made: Sequence[Made], tables: Sequence[Table] = ()) -> Section | None:
    found = [one for one in made if one]
    tables = [table for table in tables if table.rows]
    if not found and not tables:
        return None
    data = {name: columns for _, tables_ in found for name, columns in tables_.items()}
    return Section(id=id, title=title, text=text, charts=[chart for chart, _ in found], tables=tables, data=data)


def _speed(view: View) -> Section | None:
    return _section(
        "speed", "Speed",
        "Real tokens a second over the steady steps; every run in a process of its own. GPU time: that ratio for the "
        "kernels of one forward and backward alone, and the share of a step that each side's GPU is at work.",
        [speed.speedup_chart(view)], _by_group(view, lambda one: one.paired, SPEED_COLUMNS, _speed_row),
    )  # fmt: skip


SPEED_COLUMNS = [
    "", "Cell", ">Speedup", ">GPU time", ">Baseline, tokens/s", ">Candidate, tokens/s", "Parity", "Status", "Runs",
]  # fmt: skip


def _speed_row(one: FindingView) -> Row:
    row = one.row
    notes = [f"even after {row.break_even}"] if row.break_even != UNKNOWN else []
    cells = [
        Cell(f"F{one.number}", href=f"#{one.anchor}"),
        _what(one),
        Cell(row.speedup, sub=row.certainty),
        Cell(row.gpu_time, sub=row.gpu_note),
        Cell(row.baseline_rate, sub=row.baseline),
        Cell(row.candidate_rate, sub=row.candidate),
        Cell(row.parity),
        Cell(tag=row.status, sub="; ".join([*([one_line(row.why)] if row.why else []), *notes])),
        Cell(sub=f"n: {row.processes}", links=one.links),
    ]
    return Row(cells, id=one.anchor, about=one.about)


def _what(one: FindingView) -> Cell:
    row = one.row
    weights = " (random weights)" if row.random_weights else ""
    extra = f"; {row.extra}" if row.extra else ""
    return Cell(f"{row.model}{weights}", sub=f"{row.method}, {row.precision}, {row.recipe}{extra}")


def _by_group(
    view: View, chosen: Callable[[FindingView], bool], columns: Sequence[str], row: Callable[[FindingView], Row]
) -> list[Table]:  # fmt: skip
    tables = []
    for group in view.groups:
        rows = [row(one) for one in group.findings if chosen(one)]
        note = f"{group.origin}." if group.origin else ""
        tables.append(Table(columns, rows, title=group.machine, note=note))
    return tables


def _memory(view: View) -> Section | None:
    def row(one: FindingView) -> Row:
        meters = [Cell(memory.saving, sub=memory.peaks_gib) for memory in one.row.memory]
        name = Cell(f"F{one.number}", href=f"#{one.anchor}")
        sides = Cell(one.row.candidate, sub=f"against {one.row.baseline}")
        return Row([name, _what(one), sides, *meters], about=one.about)

    def known(one: FindingView) -> bool:
        return one.paired and any(m.baseline or m.candidate for m in one.finding.memory.values())

    columns = ["", "Cell", "Sides", *(f">{name}: saving, GiB" for name in METER_NAMES.values())]
    return _section(
        "memory", "Memory",
        "The highest use in warm-up and steady steps, under four meters. 1 GiB is 2^30 bytes; negative: more.",
        [memory.peaks_chart(view), memory.parts_chart(view), memory.timeline_chart(view)],
        _by_group(view, known, columns, row),
    )  # fmt: skip


def _accuracy(view: View) -> Section | None:
    def scored(one: FindingView) -> bool:
        return (one.row.baseline_accuracy, one.row.candidate_accuracy) != (UNKNOWN, UNKNOWN)

    def row(one: FindingView) -> Row:
        name, line = Cell(f"F{one.number}", href=f"#{one.anchor}"), one.row
        scores = [Cell(line.baseline_accuracy, sub=line.baseline), Cell(line.candidate_accuracy, sub=line.candidate)]
        return Row([name, _what(one), *scores], about=one.about)

    columns = ["", "Cell", "Baseline, before → after", "Candidate, before → after"]
    return _section(
        "accuracy", "Accuracy", "lm-eval on held-out items before and after the fine-tune, ± one standard error.",
        [accuracy.scores_chart(view), accuracy.differences_chart(view)],
        [*_by_group(view, scored, columns, row), _paired(view)],
    )  # fmt: skip


def _paired(view: View) -> Table:
    rows = []
    for group in view.groups:
        for found in group.accuracy:
            words, cell = accuracy_row(found), found.cell
            links = [Link(f"run {i}", f"#{anchor(id)}") for i, id in enumerate(found.record_ids, 1)]
            about = {"model": cell.model, "precision": cell.precision, "rank": str(cell.r or "full"),
                     "backend": cell.backend, "baseline": found.baseline}  # fmt: skip
            cells = [Cell(words.what, sub=words.sides), Cell(words.result), Cell(tag=words.verdict), Cell(links=links)]
            rows.append(Row(cells, about=about))
    columns = ["Cell", "After the fine-tune, baseline → candidate", "Verdict", "Runs"]
    return Table(columns, rows, title="Item by item")


def _choice(view: View) -> Section | None:
    text = "Cells with another length of sequence or another task are not drawn together."
    return _section("choice-section", "What to choose", text, [speed.choice_chart(view)])


def _training(view: View) -> Section | None:
    made = training.steps_charts(view)
    charts: list[Made] = [(chart, made[1]) for chart in made[0]] if made else []
    text = "Every optimizer step of both sides of a pair."
    return _section("training", "Training", text, [*charts, training.cost_chart(view)])


def _alone(view: View) -> Section | None:
    """Cells without a partner: rungs of a ladder, controls, and what was run on one side only."""

    def row(one: FindingView) -> Row:
        line = one.row
        side = one.finding.candidate or one.finding.baseline
        memory = next((m.peaks_gib for m in line.memory if m.meter == METER_NAMES["nvml_process"]), UNKNOWN)
        cells = [
            Cell(f"F{one.number}", href=f"#{one.anchor}"), _what(one), Cell(side.backend if side else UNKNOWN),
            Cell(number(side.tokens_per_s) if side else UNKNOWN),
            Cell(memory.replace(UNKNOWN, "").strip(" →") or UNKNOWN),
            Cell(tag=line.status, sub=one_line(line.why)), Cell(links=one.links),
        ]  # fmt: skip
        return Row(cells, id=one.anchor, about=one.about)

    columns = ["", "Cell", "Backend", ">tokens/s", ">NVML process, GiB", "Status", "Runs"]
    tables = [table for table in _by_group(view, lambda one: not one.paired, columns, row) if table.rows]
    if not tables:
        return None
    count = sum(len(table.rows) for table in tables)
    text = (
        f"{count} cells that ran with one backend only: rungs of a ladder, seeds for parity, and runs not yet repeated."
    )
    return Section(id="alone", title="Cells without a partner", text=text, tables=tables, collapsed=True)


def _failures(view: View) -> Section | None:
    failed = [one for one in view.records if one.record.status not in ("ok", CONTAMINATED)]
    return _ended("failures", "Failures", "A failed run is a result: none is left out.", failed)


def _disturbed(view: View) -> Section | None:
    text = "Other processes on the GPU, or a slowed clock. What they computed and took counts, their times do not."
    disturbed = [one for one in view.records if one.record.status == CONTAMINATED]
    return _ended("disturbed", "Disturbed runs", text, disturbed, collapsed=True)


def _ended(id: str, title: str, text: str, runs: Sequence[RecordView], *, collapsed: bool = False) -> Section | None:
    rows = [
        Row([Cell(one.label, href=f"#{one.anchor}"), Cell(tag=one.record.status),
             Cell(one.record.failed_phase or UNKNOWN), Cell(one_line(one.record.message or ""))], about=one.about)
        for one in runs
    ]  # fmt: skip
    if not rows:
        return None
    table = Table(["Run", "Status", "Phase", "Message (whole in the run)"], rows)
    return Section(id=id, title=title, text=text, tables=[table], collapsed=collapsed)


def _records(view: View) -> Section | None:
    home = {one.record.id: group for group in view.groups for one in group.records}
    rows = [_record_row(one, home[one.record.id].anchor) for one in view.records]
    if not rows:
        return None
    text = "Open a run for its samples, phases, audit and settings. The link beside it is the raw record."
    columns = ["Run", "Status", ">tokens/s", "Environment", "Raw record"]
    return Section(id="records", title="Runs", text=text, tables=[Table(columns, rows)], collapsed=True)


def _record_row(one: RecordView, environment: str) -> Row:
    links = [Link(name.rsplit("/", 1)[-1], path) for name, path in [("record.json", one.path), *one.files]]
    cells = [
        Cell(one.label, href=f"#{one.anchor}"), Cell(tag=one.record.status), Cell(number(one.derived.tokens_per_s)),
        Cell(links=[Link("environment", f"#{environment}")]), Cell(links=links),
    ]  # fmt: skip
    return Row(cells, id=one.anchor, about=one.about)
