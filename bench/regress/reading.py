"""What measuring one release yields: readings by name, and the Release that holds them."""

from datetime import datetime
from typing import Literal, get_args

from bench.cell import Frozen

SCHEMA_VERSION = 1
Level = Literal["static", "kernels", "model", "speed", "accuracy", "dispatch"]
LEVELS: tuple[Level, ...] = get_args(Level)
CPU_LEVELS: tuple[Level, ...] = ("static", "kernels", "model")
State = Literal["good", "bad", "unknown"]
"""unknown: it could not be seen here, which is no fault of the release."""
Better = Literal["lower", "higher", "equal"]
"""equal: any change is for the worse (a count of trained parameters, say)."""


class Reading(Frozen):
    """One metric of one release: a state, or numbers."""

    name: str
    """``level/what/...``; the same in every release."""
    state: State | None = None
    """Of a metric that is right or wrong; None of one that is a number."""
    values: list[float] = []
    """One a process; of a state: the evidence behind it, in ``unit``."""
    exact: bool = False
    """The number does not vary from process to process."""
    unit: str = ""
    better: Better = "lower"
    text: str = ""
    """What was seen, in words."""

    @property
    def level(self) -> str:
        """The part of the name that says the level."""
        return self.name.partition("/")[0]


class Locked(Frozen):
    """One package that was put into an overlay."""

    name: str
    version: str
    source: str
    """index, wheelhouse, wheel, folder or checkout."""
    sha256: str | None
    """Of the wheel; null for a folder."""
    built: str | None = None
    """Newest date of the files in the wheel."""


class LevelRun(Frozen):
    """How one level went."""

    seconds: float
    options: dict[str, str] = {}
    """What it was restricted to: two releases are compared only where this is alike."""
    could_not: str | None = None
    """Why there is no reading of it."""


class Release(Frozen):
    """One release, measured."""

    schema_version: int = SCHEMA_VERSION
    created: datetime
    package: str
    version: str
    lock: list[Locked]
    machine: str
    environment: dict[str, str]
    """What may sway a reading: ``bench.environment``'s comparable facts, the locked packages left out."""
    checks_sha256: str
    """Hash over the checks' source files."""
    git_revision: str | None = None
    """Of peftmark; null where it was not in git."""
    git_dirty: bool | None = None
    """Whether tracked files differed from it."""
    levels: dict[Level, LevelRun]
    readings: list[Reading]

    @property
    def by_name(self) -> dict[str, Reading]:
        """Readings by name."""
        return {reading.name: reading for reading in self.readings}

    @property
    def imports(self) -> bool:
        """Whether the package can be imported; True where level static did not look."""
        found = self.by_name.get("static/import")
        return found is None or found.state != "bad"
