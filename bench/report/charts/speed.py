"""Speed: the paired speedup of every finding, and what to choose (speed and accuracy against memory)."""

from typing import Any

from bench.finding import Side
from bench.report.charts.dots import dots
from bench.report.charts.theme import backend_scales, finish, named
from bench.report.format import GIB, gib, number, percent, rate, times
from bench.report.rows import parity_text, tuning
from bench.report.sections import Chart, Columns, Control, Option, columns_of
from bench.report.view import FindingView, View
from bench.stats import MARGIN

SPEED, CHOICE = "speed", "choice"


def speedup_chart(view: View) -> tuple[Chart, dict[str, Columns]] | None:
    """Every measured finding; None without one."""
    rows = [_speed_row(one) for one in view.findings if one.finding.speedup is not None]
    if not rows:
        return None
    best, least = max(rows, key=lambda r: r["speedup"]), min(rows, key=lambda r: r["speedup"])
    lone = sum(row["low"] is None for row in rows)
    spec = dots(
        SPEED, "speedup", "speedup: candidate's tokens/s over the baseline's (log scale)",
        (view.backends, {row["backend"] for row in rows}),
        tooltip={"label": "cell", "text": "speedup", "interval": "interval", "rates": "tokens/s", "parity": "parity"},
        scale={"type": "log", "nice": False, "padding": 50}, same=(1 / (1 + MARGIN), 1 + MARGIN),
        reference=1, text="text",
    )  # fmt: skip
    alt = (
        f"{len(rows)} measured pairs, from {least['text']} ({least['label']}) to {best['text']} ({best['label']}); "
        f"{lone} of them without an interval."
    )
    chart = Chart(
        id="speedup", title="Paired speedup",
        see="Right of the dashed line the candidate is faster; inside the grey margin (2 %) the two count as the "
            "same. A hollow mark has no interval, because fewer than three processes ran on a side.",
        alt=alt, spec=spec, tables=[SPEED],
        columns={"label": "cell", "baseline": "baseline", "backend": "candidate", "text": "speedup",
                 "interval": "interval", "rates": "tokens/s", "parity": "parity"},
    )  # fmt: skip
    return chart, {SPEED: columns_of(rows)}


def _speed_row(one: FindingView) -> dict[str, Any]:
    found, ends = one.finding, one.finding.speedup_interval
    return {
        **one.about, "href": f"#{one.anchor}", "label": one.label, "order": one.number,
        "speedup": found.speedup, "low": ends.low if ends else None, "high": ends.high if ends else None,
        "text": times(found.speedup), "interval": one.row.certainty,
        "rates": f"{one.row.baseline_rate} → {one.row.candidate_rate}", "parity": parity_text(found.parity),
    }  # fmt: skip


def choice_chart(view: View) -> tuple[Chart, dict[str, Columns]] | None:
    """Speed against memory of every cell that has both, with those that no other beats; None where no model has two."""
    families: dict[str, list[dict[str, Any]]] = {}
    seen = set()
    for one in view.findings:
        for side in (one.finding.baseline, one.finding.candidate):
            if side and side.record_ids[0] not in seen and (row := _choice_row(one, side)):
                seen.add(side.record_ids[0])
                families.setdefault(row["family"], []).append(row)
    families = {name: rows for name, rows in families.items() if len(rows) > 1}
    if not families:
        return None
    for rows in families.values():
        _mark_unbeaten(rows)
    everything = [row for rows in families.values() for row in rows]
    start = max(range(len(families)), key=lambda i: len(list(families.values())[i]))
    name, rows = list(families.items())[start]
    best = [row for row in rows if row["unbeaten"]]
    said = "; ".join(f"{row['cell']}: {row['gib']:.1f} GiB, {rate(row['tokens_per_s'])} tokens/s" for row in best[:5])
    options = [Option(key, [key], {"model": found[0]["model"]}) for key, found in families.items()]
    chart = Chart(
        id="choice", title="What to choose: speed, memory and accuracy",
        see="Up and to the left is better. Labelled marks are beaten by no other cell of the model in all of speed, "
            "memory and (where measured) accuracy; the line joins them.",
        alt=f"{name}: {len(rows)} cells, {len(best)} of them unbeaten: {said}.",
        spec=_choice_spec(view, {row["backend"] for row in everything}), tables=[CHOICE],
        columns={"cell": "cell", "rate_text": "tokens/s", "gib_text": "peak, GiB", "accuracy": "accuracy",
                 "unbeaten": "unbeaten", "settings": "settings"},
        control=Control("Model", "family", options, start),
    )  # fmt: skip
    return chart, {CHOICE: columns_of(everything)}


def _choice_row(one: FindingView, side: Side) -> dict[str, Any] | None:
    peak, cell = side.training_peaks["nvml_process"] or side.training_peaks["torch_reserved"], one.finding.cell
    if peak is None or side.tokens_per_s is None:
        return None
    accuracy = side.accuracy_after.value if side.accuracy_after else None
    return {
        **one.about, "baseline": "", "backend": side.backend, "href": f"#{one.anchor}",
        "family": f"{cell.model}, {cell.task}, {cell.max_length} tokens",
        "cell": f"{tuning(cell)} {cell.precision} {side.backend}" if cell.method == "full"
        else f"r{cell.r} {cell.precision} {side.backend}",
        "settings": f"{one.row.recipe}{', ' if one.row.extra else ''}{one.row.extra}",
        "gib": round(peak.median / GIB, 3), "gib_text": gib(peak.median),
        "tokens_per_s": side.tokens_per_s, "rate_text": number(side.tokens_per_s),
        "score": accuracy, "accuracy": percent(accuracy), "unbeaten": False, "mark": "",
    }  # fmt: skip


def _mark_unbeaten(rows: list[dict[str, Any]]) -> None:
    """The Pareto set; accuracy counts where every cell has it."""
    scored = all(row["score"] is not None for row in rows)

    def goods(row: dict[str, Any]) -> tuple[float, ...]:
        room = -round(row["gib"], 2)  # as it is shown: less is not a difference to choose by
        return (room, row["tokens_per_s"], row["score"]) if scored else (room, row["tokens_per_s"])

    for row in rows:
        mine = goods(row)
        better = (goods(other) for other in rows)
        row["unbeaten"] = not any(o != mine and all(a >= b for a, b in zip(o, mine, strict=True)) for o in better)
        if row["unbeaten"]:
            row["mark"] = row["cell"] + (f", {row['accuracy']}" if scored else "")


def _choice_spec(view: View, used: set[str]) -> dict[str, Any]:
    import altair as alt

    colours, shapes, _ = backend_scales(view.backends, used)
    x = alt.X("gib:Q", title="peak of training, NVML process, GiB", scale=alt.Scale(zero=False, padding=25))
    y = alt.Y("tokens_per_s:Q", title="tokens/s", scale=alt.Scale(type="log", nice=False, padding=25))
    shown = {"cell": "cell", "rate_text": "tokens/s", "gib_text": "GiB", "accuracy": "accuracy", "settings": "settings"}
    base = alt.Chart(named(CHOICE))
    best = base.transform_filter("datum.unbeaten")
    return finish(alt.layer(
        best.mark_line(opacity=0.5, strokeDash=[3, 3], interpolate="step-after").encode(x=x, y=y, order="gib:Q"),
        base.mark_point().encode(
            x=x, y=y, stroke=alt.Stroke("backend:N", scale=colours),
            fill=alt.Fill("backend:N", scale=colours), shape=alt.Shape("backend:N", scale=shapes),
            fillOpacity=alt.condition("datum.unbeaten", alt.value(1), alt.value(0.15)),
            tooltip=[alt.Tooltip(f"{name}:N", title=title) for name, title in shown.items()],
        ),
        best.mark_text(align="left", dx=9, dy=-9).encode(x=x, y=y, text="mark:N"),
    ), height=320)  # fmt: skip
