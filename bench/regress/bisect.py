"""Finds the first release with a change: binary search over releases, past those that cannot be checked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.errors import InputError


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
