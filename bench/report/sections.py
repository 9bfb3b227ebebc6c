"""What a page is made of: sections with tables, charts and the data behind them.

Any module adds to the page by making a ``Section`` and giving it to ``bench.report.render``. Data are plain columns; a
chart (a Vega-Lite specification) names the tables that it draws, so that no row is on the page twice. Whatever text is
put in here is shown as text: templates and script escape it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Columns = Mapping[str, list[Any]]
"""A tidy table: a list a column, all of one length."""
About = Mapping[str, str]
"""What the filters of the page look at: ``FILTERS``, and ``baseline`` (a backend too). A missing key always passes."""
FILTERS = {"machine": "Machine", "model": "Model", "precision": "Precision", "rank": "Rank", "backend": "Backend"}


@dataclass(frozen=True)
class Link:
    """``href`` is a fragment of the page or a relative path."""

    text: str
    href: str
    fragment: str = ""
    """Place in the page that a relative path leads to."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: text, a second line, a coloured tag and links, each where it is given."""

    text: str = ""
    sub: str = ""
    tag: str = ""
    href: str = ""
    """Makes ``text`` a link."""
    links: Sequence[Link] = ()


@dataclass(frozen=True)
class Row:
    """One row; ``id`` makes it a target of links, under which the page opens the details of that finding or record."""

    cells: Sequence[Cell]
    id: str = ""
    about: About = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table that reads without scripts."""

    columns: Sequence[str]
    """Titles; one that begins with ">" is set to the right."""
    rows: Sequence[Row]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Option:
    """One choice of a control: the rows whose field has one of the values."""

    label: str
    values: Sequence[str | int]
    about: About = field(default_factory=dict)


@dataclass(frozen=True)
class Control:
    """A selector beside a chart: every table of the chart that has the column ``field`` is narrowed to an option."""

    label: str
    field: str
    options: Sequence[Option]
    start: int = 0


@dataclass(frozen=True)
class Chart:
    """One chart, and what stands around it."""

    id: str
    title: str
    see: str
    """One sentence: what to see."""
    alt: str
    """The key numbers, for who cannot see it."""
    spec: Mapping[str, Any]
    """Vega-Lite, its data named and not filled."""
    tables: Sequence[str]
    """Data it draws; the first is the table behind it."""
    columns: Mapping[str, str]
    """Of the table behind it: column to title."""
    control: Control | None = None


@dataclass(frozen=True)
class Section:
    """One section of the page."""

    id: str
    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    data: Mapping[str, Columns] = field(default_factory=dict)
    collapsed: bool = False


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows that all have the keys of the first, as columns."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
