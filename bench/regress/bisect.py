"""Finds the first release with a change: binary search over releases, past those that cannot be checked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from bench.cell import Frozen
from bench.errors import InputError
from bench.regress.policy import Policy
from bench.regress.reading import Release
from bench.regress.verdict import MetricVerdict, compare
from bench.regress.watch import Measure

SCHEMA_VERSION = 1
"""Of a Bisection's file."""


@dataclass
class Found:
    """What the search found."""

    last_without: str
    first_with: str
    checks: int = 0
    """How many releases were checked, those that could not be included."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Releases that could not be checked, with the reason."""
    between: list[str] = field(default_factory=list)
    """Skipped releases between the two: the change may have come with any of them."""


class CannotCheck(Exception):
    """A release that can be judged neither way; the message is the reason."""


def search(
    versions: Sequence[str], good: str, bad: str, changed: Callable[[str], bool], said: Callable[[str], None] = print
) -> Found:
    """The first of ``versions`` (oldest first) after ``good`` for which ``changed`` holds, as it does for ``bad``.

    At most ceil(log2(n)) checks for n releases after ``good`` up to ``bad``, where none must be skipped. ``changed``
    raises CannotCheck for a release that cannot be checked: its nearest neighbour is checked instead. InputError where
    an end is not a release or the order is wrong.
    """
    for name, value in (("--good", good), ("--bad", bad)):
        if value not in versions:
            raise InputError(f"{name} {value}", "is not among the releases", f"from {versions[0]} to {versions[-1]}")
    low, high = versions.index(good), versions.index(bad)
    if low >= high:
        raise InputError("--bad", f"{bad} is not newer than {good}", "give the older release first")
    found = Found(last_without=good, first_with=bad)
    said(f"{high - low} releases after {good}: about {math.ceil(math.log2(max(high - low, 2)))} checks")
    while open_ := [i for i in range(low + 1, high) if versions[i] not in found.skipped]:
        middle = min(open_, key=lambda i: (abs(2 * i - low - high), i))
        version = versions[middle]
        found.checks += 1
        try:
            has = changed(version)
        except CannotCheck as error:
            found.skipped[version] = str(error)
            said(f"{version}: skipped: {error}")
            continue
        said(f"{version}: {'changed' if has else 'as before'}")
        low, high = (low, middle) if has else (middle, high)
    found.last_without, found.first_with = versions[low], versions[high]
    found.between = [version for version in versions[low + 1 : high] if version in found.skipped]
    return found


class Checked(Frozen):
    """One release that was measured for the search."""

    release: Release
    changed: list[MetricVerdict] = []
    """The metrics looked for that changed against the yardstick; of the yardstick, none."""


class Bisection(Frozen):
    """A search for a change in a package's releases, with what was measured for it."""

    schema_version: int
    created: datetime
    package: str
    good: str
    """The older release, the yardstick."""
    bad: str
    metric: str
    """Pattern of the metrics looked at."""
    improved: bool
    """Whether the release was looked for that mended, not broke."""
    last_without: str
    first_with: str
    checks: int
    """How many releases were checked, those that could not be included, the yardstick not."""
    skipped: dict[str, str]
    """Releases that could not be checked, with the reason."""
    between: list[str]
    """Skipped releases between the two: the change may have come with any of them."""
    releases: list[Checked]
    """In the order in which they were measured: the yardstick is the first."""

    @property
    def changed(self) -> list[str]:
        """Names of the metrics that changed with ``first_with``."""
        return [m.name for one in self.releases if one.release.version == self.first_with for m in one.changed]


def first_change(
    versions: Sequence[str],
    good: str,
    bad: str,
    measured: Measure,
    policy: Policy,
    *,
    metric: str = "*",
    improved: bool = False,
    said: Callable[[str], None] = print,
) -> Bisection:
    """The first release after ``good`` in which a metric that ``metric`` matches regressed and counts, or improved.

    InputError where ``good`` does not import, or ``bad`` cannot be checked or has no such change.
    """
    yardstick = measured(good)
    if not yardstick.imports:
        why = yardstick.by_name["static/import"].text
        raise InputError(f"--good {good}", f"does not import: {why}", "give one that does, or --check kernels")
    checked = {good: Checked(release=yardstick)}

    def changed(version: str) -> bool:
        try:
            release = measured(version)
        except InputError as error:
            raise CannotCheck(f"{error.where}: {error.what}") from error
        if not release.imports and metric != "static/import":
            raise CannotCheck(f"does not import: {release.by_name['static/import'].text}")
        comparison = compare(yardstick, release, policy)
        wanted = [m for m in comparison.metrics if m.verdict == "improved"] if improved else comparison.failed
        checked[version] = Checked(release=release, changed=[m for m in wanted if fnmatchcase(m.name, metric)])
        return bool(checked[version].changed)

    found = search(versions, good, bad, changed, said)
    if found.first_with not in checked:
        found.checks += 1
        try:
            has = changed(bad)
        except CannotCheck as error:
            raise InputError(f"--bad {bad}", str(error), "give a newer release that can be checked") from error
        if not has:
            raise InputError(f"--bad {bad}", f"has no such change against {good}", "look at: peftmark regress")
    return Bisection(
        schema_version=SCHEMA_VERSION, created=datetime.now(UTC), package=yardstick.package, good=good, bad=bad,
        metric=metric, improved=improved, last_without=found.last_without, first_with=found.first_with,
        checks=found.checks, skipped=found.skipped, between=found.between, releases=list(checked.values()),
    )  # fmt: skip
