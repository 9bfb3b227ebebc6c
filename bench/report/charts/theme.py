"""The look of every chart: colours, shapes, axes, and how a specification is finished.

Okabe and Ito's colours ("Color Universal Design", 2008), which stay apart for the colour-blind, with a shape beside
each for print. Text and axes are ``currentColor``: they follow the page in light, dark and print.
"""

from collections.abc import Iterable, Sequence
from typing import Any

BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, GREY = (
    "#0a7abf", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#808893",
)  # fmt: skip
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, GREY)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [10, 4], [1, 3], [4, 1])
METER_COLOURS = {
    "torch allocated": GREEN, "torch reserved": ORANGE, "NVML process": VERMILLION, "NVML device": GREY,
}  # fmt: skip
ROWS_DRAWN = 60
"""A chart with a row a finding draws no more than this; the filters bring the others."""
ROW_STEP = 26


def config(ink: str = "currentColor") -> dict[str, Any]:
    """Vega-Lite configuration; ``ink`` is the colour of text and axes."""
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500}
    return {
        "font": "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
        "aria": False,
        "background": "transparent",
        "view": {"stroke": None},
        "axis": {
            **text, "gridColor": ink, "gridOpacity": 0.12, "domainColor": ink, "domainOpacity": 0.4,
            "tickColor": ink, "tickOpacity": 0.4, "labelLimit": 400,
        },
        "legend": {**text, "orient": "top", "title": None, "symbolStrokeWidth": 2, "labelLimit": 220},
        "text": {"fill": ink, "fontSize": 12},
        "rule": {"stroke": ink},
        "point": {"size": 85, "filled": True, "opacity": 1, "strokeWidth": 1.8},
        "line": {"strokeWidth": 1.8},
    }  # fmt: skip


def backend_scales(backends: Sequence[str], used: Iterable[str]) -> tuple[Any, Any, Any]:
    """Colour, shape and dash scales of the ``used`` ones among ``backends``: the same in every chart of the page."""
    import altair as alt

    places = {name: i for i, name in enumerate(backends) if name in set(used)}

    def scale(looks: Sequence[Any]) -> Any:
        return alt.Scale(domain=list(places), range=[looks[i % len(looks)] for i in places.values()])

    return scale(PALETTE), scale(SHAPES), scale(DASHES)


def finish(chart: Any, *, height: int | None = None) -> dict[str, Any]:
    """The specification, without ``config``: as wide as its place; ``height`` in pixels, else one step a row."""
    import altair as alt

    wide = chart.properties(
        width="container",
        height=alt.Step(ROW_STEP) if height is None else height,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    )
    spec = dict(wide.to_dict(validate=False))  # the tests validate it
    return {key: value for key, value in spec.items() if key != "config"}


def named(name: str) -> Any:
    """Data that the page fills in."""
    import altair as alt

    return alt.NamedData(name=name)


def room(chart: Any, channel: str, column: str, factor: float = 1.15) -> Any:
    """A layer that draws nothing and makes the axis longer, so that text beyond the last mark has a place."""
    import altair as alt

    axis = alt.X("room:Q") if channel == "x" else alt.Y("room:Q")
    return chart.transform_calculate(room=f"{factor} * datum['{column}']").mark_point(opacity=0).encode(axis)


def first_rows(chart: Any) -> Any:
    """The chart with its first ROWS_DRAWN rows, by the column ``order``."""
    import altair as alt

    ranked = chart.transform_window(
        drawn="dense_rank()", sort=[alt.SortField("order")], frame=[None, None]
    )  # fmt: skip
    return ranked.transform_filter(f"datum.drawn <= {ROWS_DRAWN}")
