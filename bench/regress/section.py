"""Releases on the report page: what ``peftmark watch`` found of each, and each metric over releases."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.regress import history
from bench.regress.history import Entry, Series
from bench.report.charts.theme import GREEN, GREY, VERMILLION, finish, named
from bench.report.format import UNKNOWN, number, one_line
from bench.report.sections import Cell, Chart, Control, Link, Option, Row, Section, Table, columns_of
from bench.report.view import relative

RELEASES = "releases"
AS_BEFORE = "no change that counts"
MARKS = {AS_BEFORE: (GREY, "circle"), "regressed": (VERMILLION, "triangle-up"), "improved": (GREEN, "triangle-down")}
IMPORT_TIME = "static/import_s"


def section(histories: Mapping[Path, Sequence[Entry]], out: Path) -> Section | None:
    """From histories of ``peftmark watch``, by path, on a page in ``out``; None where no release was checked."""
    found = {path: entries for path, entries in histories.items() if entries}
    if not found:
        return None
    series = sorted(
        ((path.stem, one) for path, entries in found.items() for one in history.series(entries)),
        key=lambda pair: _interest(pair[1]),
    )
    rows = [row for place, (_, one) in enumerate(series) for row in _points(place, one)]
    return Section(
        id="releases", title="Releases",
        text="Each release against the last good one before it, as peftmark watch saw it: does it import, are its "
             "kernels and its LoRA step right, and in which time. What counts as a change: docs/regress.md.",
        charts=[_chart(series, several=len(found) > 1)] if rows else [], data={RELEASES: columns_of(rows)},
        tables=[_table(path, entries, out) for path, entries in found.items()],
    )  # fmt: skip


def _interest(one: Series) -> tuple[int, bool, bool]:
    """Metrics that changed most often first, then the import's time, then those that are not 0 throughout."""
    changes = sum(point.mark in ("regressed", "improved") for point in one.points)
    return -changes, one.name != IMPORT_TIME, not any(point.value for point in one.points)


def _text(one: Series, value: float | None) -> str:
    return f"{value:.0f}" if one.unit == "bad" and value is not None else number(value)


def _table(path: Path, entries: Sequence[Entry], out: Path) -> Table:
    link = Link(path.name, relative(path.resolve(), out.resolve()))
    machines = list(dict.fromkeys(entry.release.machine for entry in entries))
    return Table(
        ["Release", "Built", "Verdict", "What changed", "File"],
        [_row(entry, link) for entry in reversed(entries)],
        title=f"{entries[-1].release.package}: {path.stem}", note=f"Checked on {'; '.join(machines)}.",
    )  # fmt: skip


def _row(entry: Entry, link: Link) -> Row:
    release = entry.release
    built = next((item.built for item in release.lock if item.name == release.package), None)
    tag, why = _verdict(entry)
    changes = [f"{what}: {_grouped(names)}" for what, names in
               (("regressed", entry.regressed), ("improved", entry.improved)) if names]  # fmt: skip
    return Row([
        Cell(release.version, sub=f"checked {release.created:%Y-%m-%d}"), Cell(built or UNKNOWN),
        Cell(tag=tag, sub=why), Cell("; ".join(changes)), Cell(links=[link]),
    ])  # fmt: skip


def _verdict(entry: Entry) -> tuple[str, str]:
    if entry.against is None:
        broken = entry.release.by_name.get("static/import")
        return ("first", "nothing to compare it with") if entry.good or broken is None else (
            "failed", f"does not import: {one_line(broken.text)}")  # fmt: skip
    against = f"against {entry.against}"
    if entry.regressed:
        return "regressed", against
    if not entry.good:
        levels = entry.release.levels.items()
        why = "; ".join(f"{name}: {one_line(run.could_not)}" for name, run in levels if run.could_not)
        return "inconclusive", f"{against}; {why or 'a level could not run'}"
    return ("improved" if entry.improved else "passed"), against


def _grouped(names: Sequence[str]) -> str:
    """Names, those of one group as a count: all are in the file."""
    counts = Counter(map(history.group, names))
    single = {history.group(name): name for name in names}
    shown = [single[group] if count == 1 else f"{count} of {group}" for group, count in counts.most_common()]
    return one_line(", ".join(shown), 300)


def _points(place: int, one: Series) -> list[dict[str, Any]]:
    return [
        {
            "series": place, "order": order, "release": point.version, "value": point.value,
            "mark": point.mark or AS_BEFORE, "text": _text(one, point.value) if point.mark else "",
            "shown": f"{_text(one, point.value)}{'' if one.unit == 'bad' or not one.unit else f' {one.unit}'}",
        }
        for order, point in enumerate(one.points)
    ]  # fmt: skip


def _name(one: Series) -> str:
    if one.name == IMPORT_TIME:
        return f"time of the import, {one.unit}"
    return f"{one.name}: how many are bad" if one.unit == "bad" else ", ".join(filter(None, [one.name, one.unit]))


def _chart(series: Sequence[tuple[str, Series]], *, several: bool) -> Chart:
    labels = [f"{stem}: {_name(one)}" if several else _name(one) for stem, one in series]
    first = series[0][1]
    known = [point for point in first.points if point.value is not None]
    told = [
        f"{point.version} {_text(first, point.value)}" + f" ({point.mark})" * bool(point.mark) for point in known[-8:]
    ]
    changed = Counter(point.mark for _, one in series for point in one.points if point.mark)
    marks = ", ".join(f"{count} times {mark}" for mark, count in changed.items()) or "no change that counts"
    return Chart(
        id="releases", title="From release to release",
        see="One metric over releases; the selector has those first that changed most often. A mark of another colour "
            "is a change against the last good release. Lower is better, except for counts that must stay.",
        alt=f"{labels[0]}: {', '.join(told) or 'no value'}. Over all {len(series)} metrics: {marks}.", spec=_spec(),
        tables=[RELEASES],
        columns={"release": "release", "shown": "value", "mark": "against the last good one"},
        control=Control("Metric", "series", [Option(label, [place]) for place, label in enumerate(labels)]),
    )  # fmt: skip


def _spec() -> dict[str, Any]:
    import altair as alt

    x = alt.X("release:N", sort=alt.EncodingSortField("order", op="min"), title=None,
              axis=alt.Axis(labelAngle=-35, labelOverlap=True))  # fmt: skip
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=True, nice=True))
    names = list(MARKS)
    colours, shapes = zip(*MARKS.values(), strict=True)
    shown = {"release": "release", "shown": "value", "mark": "against the last good one"}
    base = alt.Chart(named(RELEASES)).transform_filter("datum.value != null")
    return finish(alt.layer(
        base.mark_line(color=GREY, opacity=0.6).encode(x=x, y=y, order="order:Q"),
        base.mark_point(size=110).encode(
            x=x, y=y, color=alt.Color("mark:N", scale=alt.Scale(domain=names, range=list(colours))),
            shape=alt.Shape("mark:N", scale=alt.Scale(domain=names, range=list(shapes))),
            tooltip=[alt.Tooltip(f"{name}:N", title=title) for name, title in shown.items()],
        ),
        base.mark_text(dy=-14).encode(x=x, y=y, text="text:N"),
    ), height=240)  # fmt: skip
