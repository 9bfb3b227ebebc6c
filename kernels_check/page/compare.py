"""Two records of the check set against each other: another release, another machine, another day."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from bench.errors import InputError
from bench.groups import machine_name
from kernels_check.record import Entry, Error, KernelRecord

ACROSS = ("checks_sha256", "seed")
"""What must agree for two errors to be of the same inputs in the same cases."""
FACTOR, LOWEST = 2.0, 0.1
"""An error changed if it did so by more than FACTOR, and one of the two is above LOWEST tolerances."""
ABSENT = "absent"
Kind = Literal["status", "kernels", "forward", "gradient"]
WRONG = re.compile(r"(\w+): \S+ tolerances at \([^)]*\)")


@dataclass(frozen=True)
class Change:
    """One difference of one candidate of a family, and the cases in which it is the same."""

    family: str
    candidate: str
    kind: Kind
    old: str
    new: str
    where: dict[str, list[str]]
    """dtypes by case."""

    @property
    def places(self) -> str:
        """``case (dtype, dtype); case (dtype)``."""
        return "; ".join(f"{case} ({', '.join(dtypes)})" for case, dtypes in self.where.items())

    @property
    def count(self) -> int:
        """Cases and dtypes."""
        return sum(map(len, self.where.values()))


@dataclass(frozen=True)
class Comparison:
    """What differs between two records."""

    header: list[str]
    """What differs between the runs themselves."""
    changes: list[Change]
    common: int
    """Entries that both records have."""


def comparable(old: KernelRecord, new: KernelRecord) -> dict[str, tuple[str, str]]:
    """What keeps the errors of two records from being compared, with both values; empty if nothing does."""
    values = {"checks_sha256": (old.checks_sha256[:12], new.checks_sha256[:12]), "seed": (str(old.seed), str(new.seed))}
    return {key: values[key] for key in ACROSS if getattr(old, key) != getattr(new, key)}


def compare(old: KernelRecord, new: KernelRecord, across: Collection[str] = ()) -> Comparison:
    """What differs. InputError where the records used other checks or another seed, unless ``across`` names it."""
    for name in across:
        if name not in ACROSS:
            raise InputError(f"--across {name}", "is nothing that is held equal", f"one of: {', '.join(ACROSS)}")
    unlike = comparable(old, new)
    for key, (before, after) in unlike.items():
        if key not in across:
            mend = f"make both records with the same checks and seed, or allow it with: --across {key}"
            raise InputError(f"kernels compare, {key}", f"{before} in the older record, {after} in the newer", mend)
    olds, news = ({_key(entry): entry for entry in record.entries} for record in (old, new))
    grouped: dict[tuple[str, str, Kind, str, str], dict[str, list[str]]] = {}
    for place in dict.fromkeys([*olds, *news]):
        family, case, dtype, candidate = place
        for kind, was, now in _differences(olds.get(place), news.get(place)):
            grouped.setdefault((family, candidate, kind, was, now), {}).setdefault(case, []).append(dtype)
    return Comparison(
        header=_header(old, new, unlike),
        changes=[Change(*group, where=where) for group, where in grouped.items()],
        common=len(olds.keys() & news.keys()),
    )


def _key(entry: Entry) -> tuple[str, str, str, str]:
    return entry.family, entry.case, entry.dtype, entry.candidate


def _header(old: KernelRecord, new: KernelRecord, unlike: dict[str, tuple[str, str]]) -> list[str]:
    machines = [machine_name(record.environment) for record in (old, new)]
    facts = {"device": (old.device, new.device), "machine": (machines[0], machines[1])}
    for name in dict.fromkeys([*old.versions, *new.versions]):
        facts[name] = old.versions.get(name) or ABSENT, new.versions.get(name) or ABSENT
    told = [f"{name}: {was} -> {now}" for name, (was, now) in facts.items() if was != now]
    return told + [f"{key}: {was} -> {now}: errors are not of the same inputs" for key, (was, now) in unlike.items()]


def _differences(old: Entry | None, new: Entry | None) -> list[tuple[Kind, str, str]]:
    found: list[tuple[Kind, str, str]] = []
    was_status, is_status = _status(old), _status(new)
    neither = old and new and old.status == new.status == "not runnable here"  # the reason names the release
    if was_status != is_status and not neither:
        found.append(("status", was_status, is_status))
    if not old or not new:
        return found
    if old.launched and new.launched and old.launched != new.launched:
        found.append(("kernels", _launched(old), _launched(new)))
    errors: list[tuple[Kind, Error | None, Error | None]] = [
        ("forward", old.forward, new.forward), ("gradient", old.gradient, new.gradient),
    ]  # fmt: skip
    for kind, was, now in errors:
        if was and now and _moved(was, now):
            found.append((kind, error_text(was), error_text(now)))
    return found


def _status(entry: Entry | None) -> str:
    """The status, and of the reason what is alike in many cases: which results are wrong, not by how much."""
    if entry is None:
        return ABSENT
    known = f" ({entry.known_fault})" if entry.known_fault else ""
    return f"{entry.status}: {short(entry.reason)}{known}" if entry.reason else entry.status


def short(reason: str) -> str:
    """A failure's reason without its numbers."""
    return WRONG.sub(r"\1 wrong", reason)


def _launched(entry: Entry) -> str:
    return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in entry.launched.items())


def _moved(old: Error, new: Error) -> bool:
    """Of two different results' errors only a wrong one tells something: a release may lack the worse result."""
    low, high = sorted((old.tolerances, new.tolerances))
    return high > FACTOR * low and high > (LOWEST if old.result == new.result else 1)


def error_text(error: Error) -> str:
    """``0.42 tolerances, Y``."""
    return f"{error.tolerances:.3g} tolerances, {error.result}"
