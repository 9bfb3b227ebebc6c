"""The history: every release that was checked, one JSON line each, and the series that a chart of it needs."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from bench.cell import Frozen
from bench.errors import InputError
from bench.regress.reading import SCHEMA_VERSION, Release


class Entry(Frozen):
    """One line."""

    release: Release
    good: bool
    """No regression against the release it was compared with."""
    against: str | None = None
    """Version of that; null for the first."""
    regressed: list[str] = []
    """Names of the metrics that regressed and count."""
    improved: list[str] = []


class Point(Frozen):
    """One release in a chart."""

    version: str
    value: float | None
    """Median over processes; of states, how many are bad."""
    mark: str | None
    """regressed or improved, against the release that it was compared with."""


class Series(Frozen):
    """One metric over releases."""

    name: str
    unit: str
    points: list[Point]


def read(path: Path) -> list[Entry]:
    """All entries in order; none where the file is not there yet. InputError names a line that is no entry."""
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = Entry.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}, line {number}, {place}", first["msg"], "take the line out") from error
        if entry.release.schema_version > SCHEMA_VERSION:
            raise InputError(f"{path}, line {number}", "was written by a newer peftmark", "upgrade peftmark")
        entries.append(entry)
    return entries


def append(path: Path, entry: Entry) -> None:
    """Add one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(entry.model_dump_json(exclude_defaults=True) + "\n")


def series(entries: Sequence[Entry]) -> list[Series]:
    """What a chart draws: each metric that is a number, and for each group of states how many are bad.

    A group is ``level`` or, of the kernels, ``kernels/family``; its mark is that of any of its metrics.
    """
    names: dict[str, str] = {}
    for entry in entries:
        for reading in entry.release.readings:
            if reading.state is None:
                names.setdefault(reading.name, reading.unit)
            else:
                names.setdefault(group(reading.name), "bad")
    return [
        Series(name=name, unit=unit, points=[
            Point(version=entry.release.version, value=_value(entry, name), mark=_mark(entry, name))
            for entry in entries
        ])
        for name, unit in names.items()
    ]  # fmt: skip


def group(name: str) -> str:
    """The part of a state's name under which it is counted."""
    level, *rest = name.split("/")
    return f"{level}/{rest[0]}" if level == "kernels" or (level == "static" and len(rest) > 1) else level


def _value(entry: Entry, name: str) -> float | None:
    readings = entry.release.readings
    numbers = next((r.values for r in readings if r.name == name and r.state is None), None)
    if numbers:
        return median(numbers)
    states = [r.state for r in readings if r.state is not None and group(r.name) == name]
    return float(states.count("bad")) if any(state != "unknown" for state in states) else None


def _mark(entry: Entry, name: str) -> str | None:
    for mark, names in (("regressed", entry.regressed), ("improved", entry.improved)):
        if any(name in (changed, group(changed)) for changed in names):
            return mark
    return None
