"""Pairs of runs in a folder, as run folders ``pair-1/baseline``, ``pair-1/candidate``, ...: made there, or found there.

Each run is ``peftmark run`` in a fresh process that sees one release. Pairs are run A B, B A, ... A pair that is whole
is taken as it is; one of which a side is missing or contaminated is run again, both sides, since what makes a pair is
that its runs follow each other. The newest record of a side is the one that counts; none is deleted.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from packaging.utils import canonicalize_name, canonicalize_version

from bench import environment, store
from bench.cache import cache_dir
from bench.environment import PACKAGES, Environment
from bench.errors import InputError
from bench.regress.overlay import Overlay
from bench.regress.process import run
from bench.store import Loaded
from bench.suite import Suite

SIDES = ("baseline", "candidate")
GRACE_S = 120.0
"""Beyond the suite's own time limit, for imports and preparation."""
APART_S = 600.0
"""Most seconds from the end of one run of a pair to the start of the other; more means that they do not belong
together."""
NOTED: dict[str, str] = {canonicalize_name(name): name for name in PACKAGES}
"""Packages whose version a record notes, by canonical name."""
ELSEWHERE = "give --runs another folder, or the releases and the suite that this one was made with"


@dataclass
class Runs:
    """What was run, or found, so far."""

    pairs: list[tuple[Loaded, Loaded]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Side to the reason why it could not run."""
    first: Loaded | None = None
    """The first run that was read: the others must be from its machine."""
    contaminated: str = ""
    """Why the last pair that was run does not count."""
    made: int = 0
    """Pairs that this command ran."""
    seconds: float = 0.0
    """What they took."""


@dataclass(frozen=True)
class Source:
    """Where pairs come from."""

    folder: Path
    sides: tuple[Overlay, Overlay]
    suite: Suite
    """Of one cell."""
    said: Callable[[str], None]

    def advance(self, runs: Runs, budget_minutes: float) -> bool:
        """Add the next pair to ``runs``, run where it is not there; False where the budget does not allow that.

        InputError where a record is of another cell, release or machine.
        """
        number = len(runs.pairs) + 1
        place, reasons = self.folder / f"pair-{number}", dict[str, str]()
        found = self._read(place, runs)
        if not _whole(found):
            if not _affords(runs, budget_minutes):
                self.said(f"the budget of {budget_minutes:g} min ends after {len(runs.pairs)} pairs")
                return False
            self._check_machine(runs)
            start = time.monotonic()
            reasons = self._run(place, number)
            runs.made, runs.seconds = runs.made + 1, runs.seconds + time.monotonic() - start
            old = {one.record.id for one in found if one}
            found = tuple(one if one and one.record.id not in old else None for one in self._read(place, runs))
        else:
            self.said(f"pair {number}: kept in {place.name}")
        self._take(runs, found, reasons)
        return True

    def _take(self, runs: Runs, found: tuple[Loaded | None, ...], reasons: dict[str, str]) -> None:
        runs.contaminated = ""
        for side, one in zip(SIDES, found, strict=True):
            if one is None:
                runs.failed[side] = reasons.get(side, "left no record")
            elif one.record.status == "contaminated":
                runs.contaminated = f"{side}: contaminated: {one.record.message or ''}"
                self.said(runs.contaminated)
            elif one.record.status != "ok":
                runs.failed[side] = f"{one.record.status}: {one.record.message or ''} (record {one.record.id})"
        if not runs.failed and not runs.contaminated:
            baseline, candidate = found
            assert baseline and candidate
            runs.pairs.append((baseline, candidate))

    def _run(self, place: Path, number: int) -> dict[str, str]:
        """Run both sides; the reason of one that may have left no record, by side.

        Unsloth writes the modules that it compiles into a folder: each release has its own, or one would find the
        other's.
        """
        reasons = {}
        for which in (0, 1) if number % 2 else (1, 0):
            side, overlay = SIDES[which], self.sides[which]
            self.said(f"pair {number}: {side} {overlay.version}")
            command = [
                sys.executable, "-m", "bench", "run", str(self.suite.path.resolve()), "--out", str(place / side),
                "--quiet", "--offline", "--fresh",
            ]  # fmt: skip
            own = {"UNSLOTH_COMPILE_LOCATION": str(cache_dir() / "regress_compiled" / overlay.version)}
            ended = run(command, [overlay.folder], self.suite.timeout_s + GRACE_S, settings=own)
            reasons[side] = ended.why if ended.code is not None else "hangs"
        return reasons

    def _read(self, place: Path, runs: Runs) -> tuple[Loaded | None, ...]:
        """The newest record of each side; None where there is none."""
        return tuple(self._newest(place / side, overlay, runs) for side, overlay in zip(SIDES, self.sides, strict=True))

    def _newest(self, folder: Path, overlay: Overlay, runs: Runs) -> Loaded | None:
        records, broken = store.load(folder)
        for bad in broken:
            raise InputError(str(bad.path), bad.reason, "restore the file, or give --runs another folder")
        for one in records:
            self._check(one, overlay, runs)
        return records[-1] if records else None

    def _check(self, one: Loaded, overlay: Overlay, runs: Runs) -> None:
        file, cell = str(one.folder / store.RECORD), self.suite.distinct_cells[0]
        for name, wanted in cell:
            if (has := getattr(one.record.cell, name)) != wanted:
                raise InputError(f"{file}, cell.{name}", f"is {has}, and the suite's is {wanted}", ELSEWHERE)
        packages = one.record.environment.packages
        for name, version in _versions(overlay).items():
            if name not in NOTED:
                continue
            noted = packages.get(NOTED[name])
            if noted is None or canonicalize_version(noted.version) != canonicalize_version(version):
                what = f"is {noted.version if noted else 'absent'}, and the release of this side has {version}"
                raise InputError(f"{file}, environment.packages.{NOTED[name]}", what, ELSEWHERE)
        runs.first = runs.first or one
        own, first = self._conditions(one.record.environment), self._conditions(runs.first.record.environment)
        for key in sorted({*own, *first}):
            if own.get(key) != first.get(key):
                what = f"is {own.get(key, 'absent')}, and of the first run {first.get(key, 'absent')}"
                raise InputError(f"{file}, environment, {key}", what, ELSEWHERE)

    def _check_machine(self, runs: Runs) -> None:
        """Before runs are added to others: that this is their machine. Variables are those of the runs' processes."""
        if runs.first is None:
            return
        own, first = self._conditions(environment.current()), self._conditions(runs.first.record.environment)
        for key in sorted({*own, *first}):
            if not key.startswith("variable.") and own.get(key) != first.get(key):
                what = f"is {first.get(key, 'absent')}, and of this machine {own.get(key, 'absent')}"
                mend = "go on where it was made, or judge what is there with: --budget-minutes 0"
                raise InputError(f"{runs.first.folder / store.RECORD}, environment, {key}", what, mend)

    def _conditions(self, of: Environment) -> dict[str, str]:
        """What all runs must have in common: the environment without the releases."""
        exchanged = {f"package.{NOTED[name]}" for side in self.sides for name in _versions(side) if name in NOTED}
        return {key: value for key, value in of.comparable().items() if key not in exchanged}


def check_noted(overlay: Overlay) -> None:
    """InputError where records would not say which release a run was of, so that a kept one could not be checked."""
    if canonicalize_name(overlay.package) not in NOTED or overlay.version == "unknown":
        what = f"records do not note the version of {overlay.package} {overlay.version}"
        raise InputError("--runs", what, f"leave --runs out, or give a release of one of: {', '.join(PACKAGES)}")


def _versions(overlay: Overlay) -> dict[str, str]:
    """Version by canonical name, of everything in the overlay."""
    own = [] if overlay.version == "unknown" else [(overlay.package, overlay.version)]
    named = [*own, *((item.name, item.version) for item in overlay.lock)]
    return {canonicalize_name(name): version for name, version in named}


def _whole(found: tuple[Loaded | None, ...]) -> bool:
    """Whether both runs are there, undisturbed, and one followed the other."""
    records = sorted((one.record for one in found if one), key=lambda record: record.started_at)
    if len(records) < len(SIDES) or any(record.status == "contaminated" for record in records):
        return False
    starts = [datetime.fromisoformat(record.started_at) for record in records]
    between_s = (starts[1] - starts[0]).total_seconds() - (records[0].wall_s or 0.0)
    return -1.0 <= between_s <= APART_S  # starts are noted in whole seconds


def _affords(runs: Runs, budget_minutes: float) -> bool:
    """Whether another pair fits into the budget; the first does wherever there is one."""
    return runs.seconds * (1 + 1 / runs.made) <= 60 * budget_minutes if runs.made else budget_minutes > 0
