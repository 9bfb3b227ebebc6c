"""Training: the loss curves of both sides laid over each other, step times with the warm-up, and the break-even."""

from typing import Any

from bench.report.charts.theme import backend_scales, finish, named
from bench.report.format import number, seconds
from bench.report.sections import Chart, Columns, Control, Option, columns_of
from bench.report.view import RecordView, View
from bench.steady import steady

STEPS, COST = "steps", "cost"
STEPS_DRAWN = 400
"""Of a longer run every n-th step is kept, with all of the warm-up and the slowest."""


def steps_charts(view: View) -> tuple[list[Chart], dict[str, Columns]] | None:
    """Loss curves and step times of a pair; None where no pair has steps on both sides."""
    rows = [row for one in view.records for row in _step_rows(one)]
    drawn = {row["record"] for row in rows}
    index = view.index_of
    options, told = [], []
    for one in view.findings:
        sides = [
            [index[id] for id in side.record_ids if index[id] in drawn] if side else []
            for side in (one.finding.baseline, one.finding.candidate)
        ]
        if all(sides):
            options.append(Option(one.label, [*sides[0], *sides[1]], one.about))
            checks = one.finding.parity.checks if one.finding.parity else []
            curve = next((check for check in checks if check.name == "loss curve"), None)
            told.append(
                f"loss curves {number(curve.difference, 2)} apart, parity check {curve.status}" if curve else ""
            )
    if not options:
        return None
    first = view.records[int(options[0].values[0])], view.records[int(options[0].values[-1])]
    ends = "; ".join(
        f"{one.record.cell.backend} from {number(one.record.steps.loss[0])} to {number(one.record.steps.loss[-1])}"
        for one in first if one.record.steps.loss
    )  # fmt: skip
    medians = "; ".join(f"{one.record.cell.backend} median {seconds(one.derived.step_s_median)}" for one in first)
    control = Control("Pair", "record", options)
    used = {view.records[int(i)].record.cell.backend for option in options for i in option.values}
    columns = {"backend": "backend", "step": "step", "loss": "loss", "seconds": "seconds", "part": "part"}
    charts = [
        Chart(id="loss", title="Loss of both sides",
              see="Both sides trained the same model on the same tokens if the curves lie on each other; how far "
                  "apart they may be is a parity check.",
              alt=f"{options[0].label}: {ends}. {told[0]}", spec=_loss_spec(view, used), tables=[STEPS],
              columns=columns, control=control),
        Chart(id="step-times", title="Seconds of every step",
              see="Hollow marks are warm-up (compilation, autotuning) and are not in the throughput; the lines are "
                  "the medians of the steady steps.",
              alt=f"{options[0].label}: {medians}.", spec=_times_spec(view, used), tables=[STEPS],
              columns=columns, control=control),
    ]  # fmt: skip
    return charts, {STEPS: columns_of(rows)}


def _step_rows(one: RecordView) -> list[dict[str, Any]]:
    steps = one.record.steps
    walls = steps.wall_s
    if not walls:
        return []
    first = steady(walls, one.record.cell.untimed_steps).first
    every = -(-len(walls) // STEPS_DRAWN)
    begun = range(min(first, len(walls), STEPS_DRAWN))  # a run may end in its warm-up
    kept = {*range(0, len(walls), every), *begun, walls.index(max(walls)), len(walls) - 1}
    return [
        {"record": one.index, "step": i + 1, "seconds": float(f"{walls[i]:.4g}"),
         "loss": _short(steps.loss[i] if i < len(steps.loss) else None), "part": "warm-up" if i < first else "steady"}
        for i in sorted(kept)
    ]  # fmt: skip


def _short(value: float | None) -> float | None:
    return None if value is None or value - value != 0 else float(f"{value:.5g}")


def _loss_spec(view: View, used: set[str]) -> dict[str, Any]:
    import altair as alt

    colours, _, dashes = backend_scales(view.backends, used)
    line = alt.Chart(named(STEPS)).transform_filter("datum.loss != null").mark_line(opacity=0.85).encode(
        x=alt.X("step:Q", title="optimizer step"),
        y=alt.Y("loss:Q", title="training loss", scale=alt.Scale(zero=False)),
        color=alt.Color("backend:N", scale=colours),
        strokeDash=alt.StrokeDash("backend:N", scale=dashes),
        detail="record:N",
        tooltip=["backend:N", "step:Q", "loss:Q"],
    )  # fmt: skip
    return finish(line, height=240)


def _times_spec(view: View, used: set[str]) -> dict[str, Any]:
    import altair as alt

    colours, shapes, _ = backend_scales(view.backends, used)
    y = alt.Y("seconds:Q", title="seconds (log scale)", scale=alt.Scale(type="log", nice=False, padding=10))
    base = alt.Chart(named(STEPS))
    stroke = alt.Stroke("backend:N", scale=colours)
    points = base.mark_point(size=38).encode(
        x=alt.X("step:Q", title="optimizer step"), y=y, stroke=stroke, fill=alt.Fill("backend:N", scale=colours),
        shape=alt.Shape("backend:N", scale=shapes),
        fillOpacity=alt.condition("datum.part == 'steady'", alt.value(0.85), alt.value(0)),
        tooltip=["backend:N", "step:Q", "seconds:Q", "part:N"],
    )  # fmt: skip
    middle = base.transform_filter("datum.part == 'steady'").mark_rule(strokeWidth=1.6).encode(
        y=alt.Y("median(seconds):Q", title="seconds (log scale)"), stroke=stroke
    )  # fmt: skip
    return finish(alt.layer(points, middle), height=240)


def cost_chart(view: View) -> tuple[Chart, dict[str, Columns]] | None:
    """Time from the start of the process against steps; None where no candidate has a dearer start to earn back."""
    rows, options, said = [], [], []
    for one in view.findings:
        found, base, cand = one.finding, one.finding.baseline, one.finding.candidate
        if found.break_even_steps is None or base is None or cand is None:
            continue
        for side in (base, cand):
            for at in (0.0, 2 * found.break_even_steps):
                rows.append({
                    **one.about, "href": f"#{one.anchor}", "finding": one.number,
                    "side": side.backend, "steps": round(at, 1),
                    "seconds": round((side.startup_s or 0) + (side.step_s or 0) * at, 2),
                    "crossing": found.break_even_steps,
                    "text": f"even after {number(found.break_even_steps)} steps",
                })  # fmt: skip
        options.append(Option(one.label, [one.number], one.about))
        said.append(f"{one.label}: {number(found.break_even_steps)} steps")
    if not rows:
        return None
    chart = Chart(
        id="break-even", title="When the slower start is earned back",
        see="Lines start at the time that import, loading and warm-up take and rise with the median step; they cross "
            "where the candidate has caught up.",
        alt="; ".join(said[:6]) + ".", spec=_cost_spec(view, {str(row["side"]) for row in rows}), tables=[COST],
        columns={"side": "backend", "steps": "steps", "seconds": "seconds", "text": "break-even"},
        control=Control("Pair", "finding", options),
    )  # fmt: skip
    return chart, {COST: columns_of(rows)}


def _cost_spec(view: View, used: set[str]) -> dict[str, Any]:
    import altair as alt

    colours, _, dashes = backend_scales(view.backends, used)
    base = alt.Chart(named(COST))
    x = alt.X("steps:Q", title="steady steps")
    once = base.transform_aggregate(crossing="min(crossing)", text="min(text)", top="max(seconds)", groupby=["finding"])
    return finish(alt.layer(
        base.mark_line(strokeWidth=2.2).encode(
            x=x, y=alt.Y("seconds:Q", title="seconds since the start"), color=alt.Color("side:N", scale=colours),
            strokeDash=alt.StrokeDash("side:N", scale=dashes),
        ),
        once.mark_rule(strokeDash=[4, 3], opacity=0.6).encode(x=alt.X("crossing:Q")),
        once.mark_text(align="left", dx=6, y=10).encode(x=alt.X("crossing:Q"), text="text:N"),
    ), height=220)  # fmt: skip
