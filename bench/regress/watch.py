"""For cron: is there a new release, and is it as good as the last good one?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.errors import InputError
from bench.regress import history
from bench.regress.history import Entry
from bench.regress.index import Index
from bench.regress.measure import Options, measure
from bench.regress.overlay import build
from bench.regress.policy import Policy
from bench.regress.reading import Release
from bench.regress.verdict import Comparison, compare

Measure = Callable[[str], Release]


@dataclass(frozen=True)
class Watched:
    """What one look found."""

    version: str
    """The newest release."""
    comparison: Comparison | None
    """None where the release was in the history already, or is the first one in it."""
    new: bool


def measurer(package: str, index: Index, options: Options, said: Callable[[str], None]) -> Measure:
    """Measures a release by its source (version, wheel, folder, checkout)."""
    return lambda source: measure(build(source, package, index), options, said)


def watch(file: Path, versions: list[str], measured: Measure, policy: Policy) -> Watched:
    """Check the newest of ``versions`` (oldest first) against the last good one of the history ``file``; append it.

    Where that one was measured by other checks or elsewhere, it is measured again.
    """
    entries, newest = history.read(file), versions[-1]
    if any(entry.release.version == newest for entry in entries):
        return Watched(version=newest, comparison=None, new=False)
    good = next((entry for entry in reversed(entries) if entry.good), None)
    release = measured(newest)
    if good is None:
        history.append(file, Entry(release=release, good=release.imports))
        return Watched(version=newest, comparison=None, new=True)
    try:
        comparison = compare(good.release, release, policy)
    except InputError:
        comparison = compare(measured(good.release.version), release, policy)
    history.append(file, judged(release, comparison))
    return Watched(version=newest, comparison=comparison, new=True)


def until(versions: list[str], version: str, file: Path) -> list[str]:
    """``versions`` (oldest first) up to ``version``, as the index had them on its day.

    InputError where it is none of them, or the history ``file`` has a newer one: a history is filled oldest first.
    """
    if version not in versions:
        raise InputError(f"--version {version}", "is not among the releases", f"from {versions[0]} to {versions[-1]}")
    kept = versions[: versions.index(version) + 1]
    newer = [entry.release.version for entry in history.read(file) if entry.release.version in versions[len(kept) :]]
    if newer:
        mend = "fill a history oldest first, or give another --history"
        raise InputError(f"--version {version}", f"{file} has a newer release, {newer[0]}", mend)
    return kept


def judged(release: Release, comparison: Comparison) -> Entry:
    """The history's line of a release that was compared."""
    return Entry(
        release=release,
        good=comparison.exit_code == 0,
        against=comparison.baseline.version,
        regressed=[metric.name for metric in comparison.failed],
        improved=[metric.name for metric in comparison.metrics if metric.verdict == "improved"],
    )
