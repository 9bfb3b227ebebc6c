"""The claims on the report page: claimed against measured, a line a measure, where records say anything."""

from collections.abc import Sequence
from typing import Any

from bench.claims.overall import paragraph
from bench.claims.show import claimed, measured
from bench.claims.verdict import ClaimVerdict, PartVerdict
from bench.record import Record
from bench.report.charts.theme import GREY, finish, named
from bench.report.format import one_line
from bench.report.sections import Cell, Chart, Columns, Link, Row, Section, Table, columns_of
from bench.report.view import anchor

COLOURS = {"supported": "#009e73", "partly": "#e69f00", "inconclusive": "#808893", "refuted": "#d55e00"}
SHAPES = {"supported": "circle", "partly": "diamond", "inconclusive": "square", "refuted": "cross"}
UNITS = {"x": "ratio (log scale)", "share": "share", "GiB": "GiB", "tokens": "tokens (log scale)"}
"""What is drawn; other units stand in the table."""
LINKS = 12
"""Most runs that a line leads to; a claim over every pair has a hundred."""


def section(verdicts: Sequence[ClaimVerdict], records: Sequence[Record] = ()) -> Section | None:
    """None where the records say nothing of any claim; ``records`` tell what the paragraph in front rests on."""
    told = [one for one in verdicts if one.verdict in COLOURS]
    if not told:
        return None
    charts, data = [], dict[str, Columns]()
    for unit in UNITS:
        if rows := [_bar(one, part) for one in told for part in one.parts if part.unit == unit and _drawn(part)]:
            table = f"claims_{unit}"
            data[table] = columns_of(rows)
            charts.append(_chart(table, unit, rows))
    untold = len(verdicts) - len(told)
    rest = f" Of {untold} others these records say nothing." if untold else ""
    return Section(
        id="claims", title="Claims", charts=charts, data=data, tables=[_table(told)],
        text=f"What was claimed, and what these runs say of it. A rate counts only with an interval.{rest}"
        + (f" In one paragraph, to be quoted: {told_in_all}" if (told_in_all := paragraph(verdicts, records)) else ""),
    )  # fmt: skip


def _table(told: Sequence[ClaimVerdict]) -> Table:
    rows = []
    for one in told:
        for part in one.parts:
            first = part is one.parts[0]
            cells = [
                Cell(one.statement, sub=f"{one.id}: {one.source}, {one.date}", tag=one.verdict) if first else Cell(),
                Cell(part.metric),
                Cell(claimed(part)),
                Cell(measured(part)),
                Cell(tag=part.verdict, sub=one_line(part.note)),
                Cell(
                    links=[Link(f"run {n}", f"#{anchor(id)}") for n, id in enumerate(_records(part)[:LINKS], 1)],
                    sub=_more(len(_records(part))),
                ),
            ]
            rows.append(Row(cells))
    columns = ["Claim", "Measure", ">Claimed", ">Measured", "Verdict", "Runs"]
    return Table(columns, rows, note="Every rule with its reason: docs/claims.md.")


def _more(runs: int) -> str:
    return f"and {runs - LINKS} more: peftmark claims verdict --json" if runs > LINKS else ""


def _records(part: PartVerdict) -> list[str]:
    return list(dict.fromkeys(id for one in part.judgements for id in one.measure.records))


def _drawn(part: PartVerdict) -> bool:
    return part.measured is not None and (part.claimed_low is not None or part.claimed_high is not None)


def _bar(one: ClaimVerdict, part: PartVerdict) -> dict[str, Any]:
    low, high = part.claimed_low, part.claimed_high
    return {
        "label": f"{one.id}, {part.metric}", "claimed_low": high if low is None else low,
        "claimed_high": low if high is None else high, "measured": part.measured, "low": part.low, "high": part.high,
        "verdict": part.verdict,
    }  # fmt: skip


def _chart(table: str, unit: str, rows: Sequence[dict[str, Any]]) -> Chart:
    form = ",.0f" if unit == "tokens" else ".3g"
    alt = "; ".join(
        f"{row['label']}: claimed {row['claimed_low']:{form}}, measured {row['measured']:{form}}, {row['verdict']}"
        for row in rows
    )  # fmt: skip
    return Chart(
        id=table.replace("_", "-"), title=f"Claimed and measured: {UNITS[unit]}",
        see="Grey is what was claimed, a tick where it is one number. A point is the median over the cells that test "
            "it; the line spans the intervals of all of them, and a point without one decides nothing.",
        alt=f"{alt}.", spec=_spec(table, unit), tables=[table],
        columns={"label": "claim", "claimed_low": "claimed, from", "claimed_high": "to", "measured": "measured",
                 "low": "lowest", "high": "highest", "verdict": "verdict"},
    )  # fmt: skip


def _spec(table: str, unit: str) -> dict[str, Any]:
    import altair as alt

    scale = alt.Scale(type="log") if "log" in UNITS[unit] else alt.Scale()
    y = alt.Y("label:N", sort=None, title=None, axis=alt.Axis(grid=True))
    title = UNITS[unit]

    def x(column: str) -> Any:
        return alt.X(f"{column}:Q", title=title, scale=scale)

    names = list(COLOURS)
    colour = alt.Color("verdict:N", scale=alt.Scale(domain=names, range=[COLOURS[name] for name in names]))
    shape = alt.Shape("verdict:N", scale=alt.Scale(domain=names, range=[SHAPES[name] for name in names]))
    base = alt.Chart(named(table))
    wide = base.transform_filter("datum.claimed_high != datum.claimed_low")
    layers = [
        wide.mark_bar(color=GREY, opacity=0.25, height=16).encode(y=y, x=x("claimed_low"), x2="claimed_high:Q"),
        base.mark_tick(color=GREY, thickness=3, size=16).encode(y=y, x=x("claimed_low")),
        base.transform_filter("datum.low != null && datum.high != null").mark_rule(strokeWidth=2.2).encode(
            y=y, x=x("low"), x2="high:Q", color=colour
        ),
        base.mark_point().encode(
            y=y, x=x("measured"), color=colour, shape=shape,
            tooltip=["label:N", "claimed_low:Q", "claimed_high:Q", "measured:Q", "low:Q", "high:Q", "verdict:N"],
        ),
    ]  # fmt: skip
    return finish(alt.layer(*layers))
