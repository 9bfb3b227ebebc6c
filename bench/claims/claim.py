"""What a claim is: a statement with its source, split into parts that one experiment tests and one rule judges.

The rules are a small closed set (``RuleKind``); docs/claims.md gives the reason of each. Claims are data: the catalogue
is ``catalogue/*.yaml`` beside this file.
"""

from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from bench import suite
from bench.cell import Cell, Frozen
from bench.errors import InputError, nearest

FOLDER = Path(__file__).parent
CATALOGUE = FOLDER / "catalogue"
SUITES = FOLDER / "suites"

RuleKind = Literal["range", "at_least", "up_to", "at_most", "equal", "non_inferior", "plateau"]
Metric = Literal[
    "speedup", "vram_saving", "vram_gib", "checkpoint_ratio", "loss_distance", "non_inferiority", "accuracy_by_rank",
    "experiment", "limit", "limit_ratio", "kernel_speedup",
]  # fmt: skip
UNITS = {
    "speedup": "x", "vram_saving": "share", "vram_gib": "GiB", "checkpoint_ratio": "x", "loss_distance": "of yardstick",
    "non_inferiority": "share of items", "accuracy_by_rank": "share of items", "limit": "tokens", "limit_ratio": "x",
    "kernel_speedup": "x",
}  # fmt: skip
Fields = dict[str, Any]


class Rule(Frozen):
    """How a measured value with its interval is judged.

    range: low to high, or above; at_least: low; up_to: high is reached somewhere; at_most: high (also: fits a budget);
    equal: at most high, a tolerance; non_inferior: the interval's low end is above -high; plateau: as non_inferior, of
    the ranks ``at`` against every higher rank.
    """

    kind: RuleKind
    low: float | None = None
    high: float | None = None
    rounding: float = Field(0.0, ge=0)
    """Half a unit of the last digit that the claim states: a claimed 1.88 is met from 1.875 on."""
    at: tuple[int, ...] = ()
    """Ranks, for plateau."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needs = {"range": ("low", "high"), "at_least": ("low",)}.get(self.kind, ("high",))
        if missing := [name for name in needs if getattr(self, name) is None]:
            raise ValueError(f"rule {self.kind} needs {', '.join(missing)}")
        if (self.kind == "plateau") != bool(self.at):
            raise ValueError("'at' belongs to plateau, which needs it")
        return self


class Limit(Frozen):
    """Results of the limits search that a part reads; a ratio needs both backends."""

    what: Literal["max_length", "batch_size", "r"] = "max_length"
    model: str
    precision: str
    r: int
    vram_gib: float
    backend: str = "unsloth"
    baseline: str = "hf-peft"

    def commands(self, *, ratio: bool) -> list[str]:
        """The searches to run."""
        sides = [self.baseline, self.backend] if ratio else [self.backend]
        return [
            f"peftmark limit --vram {self.vram_gib:g} --what {self.what} --model {self.model} "
            f"--precision {self.precision} --r {self.r} --backend {side}" for side in sides
        ]  # fmt: skip


class Part(Frozen):
    """One number of a claim: what is measured, from which cells or experiment, and the rule that judges it."""

    metric: Metric
    rule: Rule
    unit: str = ""
    """Default: the metric's."""
    suites: tuple[str, ...] = ()
    """Suites whose cells test it: names of ``suites/`` here, or of shipped suites."""
    where: Fields = {}
    """Fields that the cells must have; a list allows several values."""
    baseline: Fields = {}
    """Fields that make a cell the baseline; sides are equal in all fields but those of baseline and candidate."""
    candidate: Fields = {}
    experiment: str | None = None
    measure: str | None = None
    """Which of the experiment's numbers, or the kernel's family."""
    limit: Limit | None = None

    @model_validator(mode="after")
    def _has_a_test(self) -> Self:
        needs = {
            "experiment": ("experiment", "measure"), "limit": ("limit",), "limit_ratio": ("limit",),
            "kernel_speedup": ("measure",), "vram_gib": ("suites",), "accuracy_by_rank": ("suites",),
        }.get(self.metric, ("suites", "baseline", "candidate"))  # fmt: skip
        if missing := [name for name in needs if not getattr(self, name)]:
            raise ValueError(f"metric {self.metric} needs {', '.join(missing)}")
        for fields in (self.where, self.baseline, self.candidate):
            if unknown := [name for name in fields if name not in Cell.model_fields]:
                raise ValueError(f"{', '.join(unknown)}: no field of a cell")
        return self

    @property
    def shown_unit(self) -> str:
        return self.unit or UNITS.get(self.metric, "")

    def cells(self) -> list[Cell]:
        """Every cell that this part reads."""
        return [cell for name in self.suites for cell in suite_cells(name) if matches(cell, self.where)]


class Claim(Frozen):
    """One claim."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    group: Literal["project", "published"]
    statement: str
    source: str
    date: str
    """When it was published; "undated" where the page has none."""
    gpu: str | None = None
    """GPU of the claim, where it names one."""
    stated: tuple[str, ...] = ()
    """Settings that the source states."""
    chosen: tuple[str, ...] = ()
    """Settings that the source leaves open, and what was taken."""
    parts: tuple[Part, ...] = ()
    not_testable: str | None = None
    """Why it cannot be tested here."""
    note: str = ""
    """What a reader of the verdict must know."""
    others: tuple[str, ...] = ()
    """What independent people measured."""

    @model_validator(mode="after")
    def _tested_or_why(self) -> Self:
        if bool(self.parts) == bool(self.not_testable):
            raise ValueError("give either parts, or not_testable with the reason")
        return self


def matches(cell: Cell, fields: Fields) -> bool:
    """Whether the cell has those values; a list allows several, YAML's booleans are the words on and off."""
    return all(_plain(getattr(cell, name)) in _allowed(value) for name, value in fields.items())


def _allowed(value: Any) -> list[Any]:
    return [_plain(one) for one in (value if isinstance(value, list) else [value])]


def _plain(value: Any) -> Any:
    return ("on" if value else "off") if isinstance(value, bool) else value


def suite_path(name: str) -> Path:
    """The suite of this package, else the shipped one."""
    own = SUITES / f"{name}.yaml"
    return own if own.is_file() else suite.find(name)


@cache
def suite_cells(name: str) -> tuple[Cell, ...]:
    """Cells of the suite, read once."""
    return tuple(suite.load(suite_path(name)).cells())


@cache
def catalogue() -> dict[str, Claim]:
    """Every claim by id, in the files' order; InputError names what is wrong with a file."""
    found: dict[str, Claim] = {}
    for path in sorted(CATALOGUE.glob("*.yaml")):
        for content in yaml.safe_load(path.read_text(encoding="utf-8")):
            try:
                claim = Claim.model_validate(content)
            except ValidationError as error:
                raise InputError(f"{path.name}, {content.get('id', '?')}", str(error), "mend the catalogue") from error
            if claim.id in found:
                raise InputError(path.name, f"claim {claim.id} is there twice", "give each an id of its own")
            found[claim.id] = claim
    return found


def chosen(ids: list[str] | None) -> list[Claim]:
    """The claims of those ids, all without; InputError with the nearest known id."""
    known = catalogue()
    for id in ids or []:
        if id not in known:
            raise InputError(f"claim {id!r}", "no such claim", nearest(id, list(known)))
    return [known[id] for id in dict.fromkeys(ids)] if ids else list(known.values())
