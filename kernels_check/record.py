"""What one kernel check writes down."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from bench.cell import Frozen
from bench.environment import Environment, harness_sha256

SCHEMA_VERSION = 1
Status = Literal["passed", "failed", "not exercised", "not runnable here", "crashed"]
DECIDE_NO_CASE = ("page", "speed", "cli.py", "mutate.py", "mutants")
"""Sources that can change without changing what a check does."""
BAD: tuple[Status, ...] = ("failed", "crashed")


class Error(Frozen):
    """The worst element among several results, in tolerances: above 1 is wrong; infinite where a NaN, infinity, shape
    or dtype differs from the reference."""

    result: str
    tolerances: float
    index: list[int]
    got: str
    expected: str
    tolerance: float


class Entry(Frozen):
    """One case, dtype and candidate."""

    family: str
    case: str
    dtype: str
    candidate: str
    status: Status
    reason: str | None = None
    known_fault: str | None = None
    """Why a failure of this candidate does not fail the whole check: a fault that was looked into and reported."""
    forward: Error | None = None
    gradient: Error | None = None
    seed: int
    shapes: dict[str, list[int]] = {}
    launched: dict[str, int] = {}
    """Launches by kernel name."""
    switched_off: list[str] = []
    """What the package said about kernels that it disabled itself."""
    seconds: float = 0.0


class Unavailable(Frozen):
    """Kernels of Unsloth's that no case covers."""

    family: str
    reason: str


class KernelRecord(Frozen):
    """One run of ``peftmark kernels check``."""

    schema_version: int = SCHEMA_VERSION
    created: datetime
    device: Literal["cpu", "cuda"]
    seed: int
    unsloth_copy: str
    """``installed``, or the name of the folder given with --unsloth."""
    versions: dict[str, str | None]
    environment: Environment
    checks_sha256: str
    """See the function of this name."""
    not_covered: list[str]
    """What this device's run cannot stand for."""
    entries: list[Entry]
    unavailable: list[Unavailable]
    seconds: float

    @property
    def bad(self) -> list[Entry]:
        """The entries that fail the check."""
        return [entry for entry in self.entries if entry.status in BAD and not entry.known_fault]


def checks_sha256() -> str:
    """Hash over the sources that decide which cases run and how they are judged."""
    return harness_sha256(Path(__file__).parent, without=DECIDE_NO_CASE)


def write(record: Frozen, path: Path) -> None:
    """Write a record as readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
