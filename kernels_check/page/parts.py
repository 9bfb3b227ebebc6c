"""What the page of the kernels is made of: ``report`` fills these in, the templates place them."""

from dataclasses import dataclass, field

from bench.environment import Environment
from bench.report.bars import BarGroup
from bench.report.format import UNKNOWN
from kernels_check.mutate import MutationRecord
from kernels_check.page.compare import Comparison
from kernels_check.page.timings import SpeedRow, Timings
from kernels_check.record import KernelRecord
from kernels_check.whole_model import ModelRecord


@dataclass(frozen=True)
class Source:
    """One file, as every table that was made from it names it."""

    kind: str
    link: str
    """Relative to the page."""
    name: str
    machine: str
    versions: dict[str, str | None]
    date: str
    environment: Environment
    result: str


@dataclass(frozen=True)
class Cell:
    """One candidate and dtype of a family in one record."""

    passed: int
    ran: int
    other: str
    """How many entries have another status that is no failure."""
    bad: bool
    forward: str
    forward_where: str
    gradient: str
    gradient_where: str


@dataclass(frozen=True)
class Note:
    """What did not pass, with the places in which the same was said."""

    status: str
    candidate: str
    reason: str
    known_fault: str
    places: list[str]


@dataclass(frozen=True)
class Score:
    """What the mutation test says of a family."""

    killed: int
    faults: int
    flagged: int
    equivalent: int
    survived: list[str]


@dataclass(frozen=True)
class SpeedTable:
    """A family's rows of one file."""

    source: Source
    rows: list[SpeedRow]
    skipped: list[tuple[str, str]]
    shares: list[BarGroup]
    ratios: list[BarGroup]

    @property
    def span(self) -> str:
        """Unsloth's least and greatest ratio against eager."""
        ratios = [row.ratio for row in self.rows if row.timed.candidate == "unsloth" and row.ratio]
        return f"{min(ratios):.2f}x to {max(ratios):.2f}x" if ratios else UNKNOWN


@dataclass(frozen=True)
class Family:
    """A kernel family's own section."""

    name: str
    rows: list[tuple[str, str, list[Cell | None]]]
    """candidate, dtype, and a cell for each record that is shown."""
    notes: list[tuple[Source, list[Note]]]
    switched_off: list[str]
    score: Score | None
    speed: list[SpeedTable] = field(default_factory=list)

    def passed(self, column: int) -> tuple[int, int]:
        """Of Unsloth's entries in one record: passed, and run."""
        cells = [cells[column] for name, _, cells in self.rows if name.startswith("unsloth")]
        return sum(cell.passed for cell in cells if cell), sum(cell.ran for cell in cells if cell)


@dataclass(frozen=True)
class Pairing:
    """An older record against the newest of the same device."""

    old: Source
    new: Source
    why_not: str
    found: Comparison | None


@dataclass(frozen=True)
class Gathered:
    """Everything that the page shows."""

    sources: list[Source]
    columns: list[tuple[Source, KernelRecord]]
    """The newest check of each device: the columns of ``Family.rows``."""
    families: list[Family]
    mutation: MutationRecord | None
    """The newest one."""
    mutation_source: Source | None
    models: list[tuple[Source, ModelRecord]]
    speeds: list[tuple[Source, Timings]]
    pairings: list[Pairing]
