"""Dot and whisker: a row a finding, a point at its value, a line over its interval, hollow where there is none."""

from collections.abc import Iterable, Sequence
from typing import Any

from bench.report.charts.theme import GREY, backend_scales, finish, first_rows, named


def dots(
    table: str,
    value: str,
    title: str,
    backends: tuple[Sequence[str], Iterable[str]],
    *,
    tooltip: dict[str, str],
    scale: dict[str, Any],
    same: tuple[float, float],
    reference: float,
    text: str,
    ticks: str | None = None,
) -> dict[str, Any]:
    """Columns used: ``label``, ``order``, ``backend``, ``low``, ``high``, ``value`` and ``text`` (beside the point).

    ``same`` is the shaded margin, ``reference`` the line of no difference, ``ticks`` a table of single runs,
    ``backends`` all of the page and those that are drawn.
    """
    import altair as alt

    colours, shapes, _ = backend_scales(*backends)
    y = alt.Y("label:N", sort=alt.EncodingSortField("order", op="min"), title=None, axis=alt.Axis(grid=True))
    x = alt.X(f"{value}:Q", title=title, scale=alt.Scale(**scale))
    colour = alt.Stroke("backend:N", scale=colours)
    once = alt.sequence(start=0, stop=1)  # data of one row
    base = first_rows(alt.Chart(named(table)))
    band = alt.Chart(once).mark_rect(color=GREY, opacity=0.22)
    line = alt.Chart(once).mark_rule(opacity=0.6, strokeDash=[4, 3])
    layers = [
        band.encode(x=alt.XDatum(same[0], scale=alt.Scale(**scale)), x2=alt.X2Datum(same[1])),
        line.encode(x=alt.XDatum(reference)),
        base.mark_rule(strokeWidth=2.2).transform_filter("datum.low != null").encode(
            y=y, x=alt.X("low:Q", title=title), x2="high:Q", stroke=colour
        ),
    ]  # fmt: skip
    if ticks:
        layers.append(alt.Chart(named(ticks)).mark_tick(thickness=1.5, size=9, opacity=0.7).encode(
            y=y, x=x, stroke=colour, tooltip=[alt.Tooltip(f"{value}:Q", title="one seed", format="+.1f")]
        ))  # fmt: skip
    layers += [
        base.mark_point().encode(
            y=y, x=x, stroke=colour, fill=alt.Fill("backend:N", scale=colours),
            shape=alt.Shape("backend:N", scale=shapes),
            fillOpacity=alt.condition("datum.low != null", alt.value(1), alt.value(0)),
            tooltip=[alt.Tooltip(f"{name}:N", title=shown) for name, shown in tooltip.items()],
        ),
        base.mark_text(align="left", dx=9, dy=-8).encode(y=y, x=x, text=alt.Text(f"{text}:N")),
    ]  # fmt: skip
    return finish(alt.layer(*layers))
