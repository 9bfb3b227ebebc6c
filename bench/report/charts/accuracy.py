"""Accuracy: scores before and after against rank, and the paired difference of every comparison."""

from typing import Any

from bench.finding import AccuracyFinding
from bench.record import EvalResult
from bench.report.charts.dots import dots
from bench.report.charts.theme import backend_scales, finish, named
from bench.report.format import percent
from bench.report.rows import accuracy_row, tuning
from bench.report.sections import Chart, Columns, Control, Option, columns_of
from bench.report.view import RecordView, View, anchor

SCORES, DIFFERENCES, SEEDS = "scores", "differences", "seeds"
REACH = 1.96
"""Standard errors either way: 95 % under a normal law."""


def scores_chart(view: View) -> tuple[Chart, dict[str, Columns]] | None:
    """Every evaluated record; None without one."""
    rows = [row for one in view.records if one.record.status in ("ok", "contaminated") for row in _score_rows(one)]
    if not rows:
        return None
    families = list(dict.fromkeys(row["family"] for row in rows))
    start = max(range(len(families)), key=lambda i: sum(row["family"] == families[i] for row in rows))
    first = [row for row in rows if row["family"] == families[start] and row["when"] == "after"]
    options = [
        Option(family, [family], {key: row[key] for key in ("model", "precision")})
        for family in families
        if (row := next(one for one in rows if one["family"] == family))
    ]
    chart = Chart(
        id="scores", title="Accuracy against rank",
        see="Filled marks are after the fine-tune, hollow ones before it; lines are 95 % over the items. Backends "
            "whose lines overlap widely are not told apart here: the paired difference below is sharper.",
        alt=f"{families[start]}: " + "; ".join(f"{row['what']} {row['text']}" for row in first[:8]) + ".",
        spec=_scores_spec(view, {row["backend"] for row in rows}), tables=[SCORES],
        columns={"what": "cell", "when": "fine-tune", "text": "accuracy ± standard error",
                 "items": "items", "seed": "seed"},
        control=Control("Task", "family", options, start),
    )  # fmt: skip
    return chart, {SCORES: columns_of(rows)}


def _score_rows(one: RecordView) -> list[dict[str, Any]]:
    cell = one.record.cell
    results: list[tuple[str, EvalResult | None]] = [
        ("before", one.record.eval_before),
        ("after", one.record.eval_after),
    ]
    return [
        {
            **one.about, "href": f"#{one.anchor}", "family": f"{cell.model} {cell.precision}, {result.task}",
            "what": f"{tuning(cell)} {cell.backend}", "order": cell.r or 10**6, "when": when, "seed": cell.seed,
            "items": result.items, "score": 100 * result.value,
            "low": None if result.stderr is None else max(0, 100 * (result.value - REACH * result.stderr)),
            "high": None if result.stderr is None else min(100, 100 * (result.value + REACH * result.stderr)),
            "text": percent(result.value) + ("" if result.stderr is None else f" ± {100 * result.stderr:.1f}"),
        }
        for when, result in results
        if result
    ]  # fmt: skip


def _scores_spec(view: View, used: set[str]) -> dict[str, Any]:
    import altair as alt

    colours, shapes, _ = backend_scales(view.backends, used)
    x = alt.X("rank:O", title="LoRA rank", sort=alt.EncodingSortField("order", op="min"), axis=alt.Axis(labelAngle=0))
    y = alt.Y("score:Q", title="accuracy, %", scale=alt.Scale(zero=True))
    beside = alt.XOffset("backend:N", scale=alt.Scale(paddingOuter=1))
    stroke = alt.Stroke("backend:N", scale=colours)
    base = alt.Chart(named(SCORES))
    shown = {"what": "cell", "when": "fine-tune", "text": "accuracy", "items": "items", "seed": "seed"}
    return finish(alt.layer(
        base.transform_filter("datum.low != null").mark_rule(strokeWidth=2).encode(
            x=x, xOffset=beside, y=alt.Y("low:Q", title="accuracy, %"), y2="high:Q", stroke=stroke),
        base.mark_point().encode(
            x=x, xOffset=beside, y=y, stroke=stroke, fill=alt.Fill("backend:N", scale=colours),
            shape=alt.Shape("backend:N", scale=shapes),
            fillOpacity=alt.condition("datum.when == 'after'", alt.value(1), alt.value(0)),
            tooltip=[alt.Tooltip(f"{name}:N", title=title) for name, title in shown.items()],
        ),
    ), height=280)  # fmt: skip


def differences_chart(view: View) -> tuple[Chart, dict[str, Columns]] | None:
    """Every accuracy finding whose items could be paired; None without one."""
    found = [(group.name, one) for group in view.groups for one in group.accuracy if one.paired]
    rows = [_difference_row(i, *pair) for i, pair in enumerate(found)]
    if not rows:
        return None
    seeds = [
        {
            **{key: row[key] for key in ("model", "precision", "rank", "backend", "label", "order")},
            "difference": 100 * value,
        }
        for row, (_, one) in zip(rows, found, strict=True)
        if one.paired and len(one.paired.by_seed) > 1
        for value in one.paired.by_seed
    ]
    margin = 100 * max(one.paired.margin for _, one in found if one.paired)
    chart = Chart(
        id="differences", title="Accuracy, the same items answered by both sides",
        see=f"Right of the dashed line the candidate is more accurate. It is not worse where its whole line lies "
            f"right of the grey margin's left end (a loss of {margin:.0f} points). Small ticks are single seeds.",
        alt="; ".join(f"{row['label']}: {row['result']}" for row in rows[:6]) + ".",
        spec=dots(DIFFERENCES, "difference", "candidate less baseline, percentage points, 95 % interval",
                  (view.backends, {row["backend"] for row in rows}),
                  tooltip={"label": "cell", "result": "result", "verdict": "verdict"},
                  scale={"zero": False, "padding": 45}, same=(-margin, margin), reference=0, text="text",
                  ticks=SEEDS if seeds else None),
        tables=[DIFFERENCES, *([SEEDS] if seeds else [])],
        columns={"label": "cell", "result": "result", "verdict": "verdict"},
    )  # fmt: skip
    return chart, {DIFFERENCES: columns_of(rows), **({SEEDS: columns_of(seeds)} if seeds else {})}


def _difference_row(number: int, machine: str, one: AccuracyFinding) -> dict[str, Any]:
    paired, words = one.paired, accuracy_row(one)
    assert paired is not None
    rank = "full" if one.cell.r is None else str(one.cell.r)
    return {
        "model": one.cell.model, "precision": one.cell.precision, "rank": rank, "backend": one.cell.backend,
        "baseline": one.baseline, "machine": machine, "href": f"#{anchor(one.record_ids[-1])}",
        "label": f"{words.what}{f', #{number + 1}' if number and len(one.seeds) > 9 else ''}", "order": number,
        "difference": 100 * paired.difference, "low": 100 * paired.low, "high": 100 * paired.high,
        "text": f"{100 * paired.difference:+.1f}", "result": words.result, "verdict": paired.verdict,
    }  # fmt: skip
