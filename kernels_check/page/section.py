"""The kernels on the report page: a line a family, and how fast each is; all of it is on the kernels' own page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.groups import machine_name
from bench.report.charts.theme import GREEN, GREY, SKY, VERMILLION, finish, named, room
from bench.report.format import UNKNOWN, percent
from bench.report.sections import Cell, Chart, Link, Row, Section, Table, columns_of
from bench.report.view import relative
from kernels_check.page.parts import Family, Gathered, Source
from kernels_check.page.reading import Content
from kernels_check.page.report import NOT_RUN, gather, ratio_text, time_text
from kernels_check.page.timings import BASELINE, SpeedRow, Timings, compared, speed_rows

SPEED = "kernels_speed"
PAGE = Path("kernels") / "index.html"
"""Where ``peftmark kernels report`` puts its page, beside the folder of the report."""
NAMES = {"unsloth": "Unsloth", "liger": "Liger", "compile": "torch.compile"}
LOOKS = {"Unsloth": (VERMILLION, "square"), "Liger": (GREEN, "triangle-up"), "torch.compile": (SKY, "diamond")}
Timed = tuple[Source, Timings, dict[str, list[SpeedRow]]]


def section(content: Mapping[Path, Content], out: Path) -> Section | None:
    """From files of ``peftmark kernels``, by path, on a page in ``out``; None where they say nothing of a kernel."""
    found = gather(content, out)
    if not found.families:
        return None
    newest = max(found.speeds, key=lambda pair: pair[1].datetime, default=None)
    timed = (*newest, speed_rows(newest[1])) if newest else None
    page = out.parent / PAGE
    own = relative(page.resolve(), out.resolve()) if page.is_file() and page.parent.resolve() != out.resolve() else ""
    rows = _bars(timed[2]) if timed else []
    return Section(
        id="kernels", title="Kernels", text=_text(found, timed), tables=[_table(found, timed, own)],
        charts=[_chart(rows, timed)] if timed and rows else [], data={SPEED: columns_of(rows)} if rows else {},
    )  # fmt: skip


def _text(found: Gathered, timed: Timed | None) -> str:
    said = []
    for column, (_, record) in enumerate(found.columns):
        counts = [family.passed(column) for family in found.families]
        passed, ran = (sum(count[i] for count in counts) for i in (0, 1))
        where = "Triton's interpreter on a CPU" if record.device == "cpu" else machine_name(record.environment)
        said.append(f"{passed:,} of {ran:,} of Unsloth's cases passed in {where}" if record.device == "cpu"
                    else f"{passed:,} of {ran:,} on {where}")  # fmt: skip
    parts = ["Each kernel against a float64 reference, forward and backward", *said]
    if found.mutation:
        faults = found.mutation.count("killed") + found.mutation.count("survived")
        parts.append(f"the check noticed {found.mutation.count('killed')} of {faults} faults put in on purpose")
    text = f"{parts[0]}{': ' if parts[1:] else ''}{'; '.join(parts[1:])}."
    if timed:
        text += f" Speed on {timed[0].machine}, {timed[0].date}."
    return text


def _table(found: Gathered, timed: Timed | None, own: str) -> Table:
    columns = ["Kernel", *(f">{record.device}, unsloth {record.versions.get('unsloth') or 'absent'}: passed"
                           for _, record in found.columns)]  # fmt: skip
    columns += [">Faults noticed"] if found.mutation else []
    columns += [">Against eager", ">Against torch.compile", ">Of the roofline"] if timed else []
    whole = timed[2] if timed else {}
    ordered = sorted(found.families, key=lambda family: not (family.rows and family.name in whole))
    rows = [Row(_cells(family, found, timed, own)) for family in ordered]  # those checked and timed first
    note = (
        "Of the roofline: the least time that the memory or the matrix units could take, at their measured rates, over "
        "the kernel's. Both ratios and the share at the same size and direction; in brackets the span of the quartiles."
    )
    return Table([*columns, "Files"], rows, note=note if timed else "")


def _cells(family: Family, found: Gathered, timed: Timed | None, own: str) -> list[Cell]:
    links = [Link("details", own, fragment=family.name)] if own else []
    cells = [Cell(family.name)]
    for column, (source, record) in enumerate(found.columns):
        passed, ran = family.passed(column)
        cells.append(_passed(family, source, passed, ran))
        links += [Link(record.device, source.link)] if ran or cells[-1].sub else []
    if found.mutation and found.mutation_source:
        score = family.score
        missed = f"not: {', '.join(score.survived)}" if score and score.survived else ""
        cells.append(Cell(f"{score.killed} of {score.faults}" if score else UNKNOWN, sub=missed))
        links += [Link("faults", found.mutation_source.link)] if score else []
    if timed:
        rows = compared(timed[2].get(family.name, []))
        cells += _speed(rows)
        links += [Link("speed", timed[0].link)] if family.name in timed[2] else []
    return [*cells, Cell(links=links)]


def _passed(family: Family, source: Source, passed: int, ran: int) -> Cell:
    notes = [note for where, notes in family.notes if where == source for note in notes]
    left = {
        status: sum(len(n.places) for n in notes if n.status == status and n.candidate.startswith("unsloth"))
        for status in NOT_RUN
    }
    others = ", ".join(f"{count} {status}" for status, count in left.items() if count)
    tag = "failed" if passed < ran else ""
    return Cell(f"{passed} of {ran} " if ran else UNKNOWN, sub=others, tag=tag)


def _speed(rows: Mapping[str, SpeedRow]) -> list[Cell]:
    """Against eager and torch.compile, and the share of the roofline."""
    if not rows:
        return [Cell(UNKNOWN)] * 3
    unsloth, compiled = rows["unsloth"], rows.get("compile")
    times = unsloth.stats.over(compiled.stats) if compiled else None
    waited = unsloth.timed.cpu_bound_rounds
    return [
        Cell(ratio_text(unsloth), sub=f"{unsloth.timed.shape}, {unsloth.timed.direction}"),
        Cell(f"{times[0]:.2f}x ({times[1]:.2f} to {times[2]:.2f})" if times else UNKNOWN),
        Cell(percent(unsloth.share, 0),
             sub=", ".join([*([unsloth.bound] if unsloth.bound else []),
                            *([f"CPU-bound in {percent(waited, 0)} of rounds"] if waited else [])])),
    ]  # fmt: skip


def _bars(families: Mapping[str, Sequence[SpeedRow]]) -> list[dict[str, Any]]:
    """A row a kernel and candidate, Unsloth's fastest kernel first."""
    chosen = {name: rows for name, all_rows in families.items() if (rows := compared(all_rows))}
    ranked = sorted(chosen, key=lambda name: -(chosen[name]["unsloth"].ratio or 0))
    return [
        {
            "kernel": name if "backward" in row.timed.direction else f"{name} ({row.timed.direction})",
            "order": place, "candidate": NAMES.get(candidate, candidate), "ratio": row.ratio,
            "low": row.ratio_low, "high": row.ratio_high, "text": ratio_text(row), "time": time_text(row),
            "share": percent(row.share, 0), "size": f"{row.timed.shape}, {row.timed.dtype}",
            "mark": f"{row.ratio:.2f}x" if candidate == "unsloth" else "",
            "beside": _beside(row, chosen[name].get("compile")) if candidate == "unsloth" else "",
        }
        for place, name in enumerate(ranked)
        for candidate, row in chosen[name].items()
        if candidate != BASELINE and row.ratio is not None
    ]  # fmt: skip


def _beside(row: SpeedRow, compiled: SpeedRow | None) -> str:
    """Against torch.compile, by the quartiles of both."""
    if compiled is None:
        return ""
    _, low, high = row.stats.over(compiled.stats)
    return "faster" if low > 1 else "slower" if high < 1 else "alike"


def _chart(rows: Sequence[dict[str, Any]], timed: Timed) -> Chart:
    unsloth = [row for row in rows if row["candidate"] == "Unsloth"]
    first, last = unsloth[0], unsloth[-1]
    beside = Counter(row["beside"] for row in unsloth if row["beside"])
    alt = (
        f"{len(unsloth)} kernels on {timed[0].machine}: Unsloth is from {last['mark']} ({last['kernel']}) to "
        f"{first['mark']} ({first['kernel']}) as fast as eager PyTorch"
    )
    if beside:
        alt += (
            f"; than torch.compile, where both were timed, it is faster in {beside['faster']}, slower in "
            f"{beside['slower']} and by the quartiles not told apart in {beside['alike']}"
        )
    return Chart(
        id="kernels-speed", title="Speed of each kernel against eager PyTorch",
        see="Right of the dashed line a kernel is faster than eager PyTorch; the number is Unsloth's. Forward and "
            "backward together where a kernel has a backward, at the largest size at which all were timed.",
        alt=f"{alt}.", spec=_spec([row["candidate"] for row in rows]), tables=[SPEED],
        columns={"kernel": "kernel", "candidate": "candidate", "text": "against eager (quartiles)", "time": "time",
                 "share": "of the roofline", "size": "size", "beside": "against torch.compile"},
    )  # fmt: skip


def _spec(used: Sequence[str]) -> dict[str, Any]:
    import altair as alt

    names = [name for name in LOOKS if name in used] + sorted(set(used) - LOOKS.keys())
    colours, shapes = zip(*(LOOKS.get(name, (GREY, "circle")) for name in names), strict=True)
    y = alt.Y("kernel:N", sort=alt.EncodingSortField("order", op="min"), title=None, axis=alt.Axis(grid=True))
    scale = alt.Scale(type="log", nice=False, padding=30)
    title = "times as fast as eager (log scale)"
    base = alt.Chart(named(SPEED))
    shown = {"kernel": "kernel", "candidate": "candidate", "text": "against eager", "time": "time",
             "share": "of the roofline", "size": "size"}  # fmt: skip
    ended = base.transform_joinaggregate(most="max(ratio)", groupby=["kernel"]).transform_filter("datum.mark != ''")
    ended = ended.transform_calculate(end="max(1, datum.most)")
    colour = alt.Color("candidate:N", scale=alt.Scale(domain=names, range=list(colours)))
    return finish(alt.layer(
        alt.Chart(alt.sequence(start=0, stop=1)).mark_rule(opacity=0.6, strokeDash=[4, 3]).encode(x=alt.XDatum(1)),
        ended.transform_calculate(one="1").mark_rule(strokeWidth=1.5, opacity=0.3).encode(
            y=y, x=alt.X("one:Q", title=title, scale=scale), x2="end:Q"),
        base.mark_point().encode(
            y=y, x=alt.X("ratio:Q", title=title, scale=scale), color=colour,
            shape=alt.Shape("candidate:N", scale=alt.Scale(domain=names, range=list(shapes))),
            size=alt.condition("datum.candidate == 'Unsloth'", alt.value(110), alt.value(55)),
            tooltip=[alt.Tooltip(f"{name}:N", title=text) for name, text in shown.items()],
        ),
        ended.mark_text(align="left", dx=10).encode(y=y, x=alt.X("end:Q"), text="mark:N"), room(ended, "x", "end", 1.7),
    ))  # fmt: skip
