"""The data of the page: one JSON document, compressed where it is large."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench.report.charts.theme import config
from bench.report.details import SIDE_COLUMNS, finding_details, record_details
from bench.report.sections import FILTERS, Chart, Columns, Section
from bench.report.view import View

PLAIN_BYTES = 200_000
"""From here on the document is gzipped (and base64: it stands in a text)."""


def tables_of(view: View, sections: Sequence[Section]) -> dict[str, Columns]:
    """Every table that a chart draws, once, and ``records``, to which their column ``record`` refers."""
    names = [*FILTERS, "baseline"]
    records = {name: [one.about.get(name, "") for one in view.records] for name in names}
    records |= {"anchor": [one.anchor for one in view.records], "label": [one.label for one in view.records]}
    tables: dict[str, Columns] = {"records": records}
    for section in sections:
        for name, columns in section.data.items():
            if name in tables and tables[name] != columns:
                raise ValueError(f"two sections give different data the name {name!r}")
            tables[name] = columns
    return tables


def charts_of(sections: Sequence[Section]) -> list[Chart]:
    return [chart for section in sections for chart in section.charts]


def rows_of(tables: Mapping[str, Columns], chart: Chart) -> dict[str, list[dict[str, Any]]]:
    """The rows that a chart shows first: its control at the start, no filter. The page's script does the same."""
    control = chart.control
    wanted = set(control.options[control.start].values) if control else set()
    found = {}
    for name in chart.tables:
        columns = tables[name]
        length = len(next(iter(columns.values()), []))
        rows = [{key: values[i] for key, values in columns.items()} for i in range(length)]
        if control and control.field in columns:
            rows = [row for row in rows if row[control.field] in wanted]
        if "record" in columns:
            rows = [{"backend": tables["records"]["backend"][row["record"]], **row} for row in rows]
        found[name] = rows
    return found


def payload(view: View, sections: Sequence[Section]) -> dict[str, Any]:
    """What the script of the page works with."""
    index = view.index_of
    charts = {
        chart.id: {"spec": chart.spec, "tables": list(chart.tables), "columns": dict(chart.columns),
                   "control": asdict(chart.control) if chart.control else None}
        for chart in charts_of(sections)
    }  # fmt: skip
    return {
        "config": config(),
        "tables": tables_of(view, sections),
        "charts": charts,
        "records": [record_details(one) for one in view.records],
        "findings": [finding_details(one, index) for one in view.findings],
        "side_columns": SIDE_COLUMNS,
    }


def encoded(document: Mapping[str, Any]) -> tuple[str, str]:
    """Its encoding (json or gzip) and the text that stands in the page's script element."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if len(text) < PLAIN_BYTES:
        return "json", text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return "gzip", base64.b64encode(gzip.compress(text.encode(), compresslevel=7, mtime=0)).decode()
