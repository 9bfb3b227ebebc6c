"""PNG and SVG of every chart, as it first stands on the page; drawn without a browser."""

import json
from pathlib import Path
from typing import Any, Literal

from bench.report.charts.theme import config
from bench.report.payload import charts_of, rows_of, tables_of
from bench.report.sections import Chart, Columns
from bench.report.view import View

WIDTH = 760
INK = "#1c1f24"
Format = Literal["svg", "png"]


def write_images(
    view: View, sections: list[Any], out: Path, formats: tuple[Format, ...] = ("svg", "png")
) -> list[Path]:
    """One file a chart and format in ``out`` (made when missing), named by the chart; returns them."""
    tables = tables_of(view, sections)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in charts_of(sections):
        for form in formats:
            path = out / f"{chart.id}.{form}"
            path.write_bytes(image(chart, tables, form))
            written.append(path)
    return written


def image(chart: Chart, tables: dict[str, Columns], form: Format) -> bytes:
    """The chart on white, with its title."""
    import vl_convert

    spec = json.loads(json.dumps(chart.spec).replace("currentColor", INK))
    spec |= {
        "width": WIDTH, "datasets": rows_of(tables, chart), "background": "white", "padding": 12,
        "title": {"text": chart.title, "anchor": "start", "color": INK, "fontSize": 15}, "config": config(INK),
    }  # fmt: skip
    if form == "svg":
        return str(vl_convert.vegalite_to_svg(spec)).encode()
    return bytes(vl_convert.vegalite_to_png(spec, scale=1.5))
