"""The outcome of a limits search, as ``limit.json`` keeps it and as a table shows it."""

import shutil
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from bench import store
from bench.cell import Cell, Frozen
from bench.environment import Environment
from bench.errors import InputError
from bench.limit.family import GIB, UNIT, What
from bench.record import Status

FILE = "limit.json"


class ProbeResult(Frozen):
    """One probe: a record, and what it says of its value. Peaks are those of loading and training."""

    value: int
    repeat: int
    status: Status
    fits: bool
    reason: str | None
    """Why it does not fit."""
    record_id: str
    reused: bool
    """The record was there before this search."""
    nvml_process_peak_bytes: int | None
    torch_allocated_peak_bytes: int | None
    torch_reserved_peak_bytes: int | None
    outside_allocator_bytes: int | None
    """CUDA's context and libraries as measured in the probe, after the first step where it came so far."""
    wall_s: float | None


class Resolution(Frozen):
    """How far apart value and first failing value may be: the larger of the two."""

    step: int
    relative: float


class Validation(Frozen):
    """Two more fresh processes: at the limit, and 5 % above it (null past the end of the grid)."""

    at_limit: ProbeResult
    above: ProbeResult | None
    holds: bool
    """The first trained, the second did not."""


class LimitResult(Frozen):
    """See the module's docstring."""

    schema_version: Literal[1] = 1
    name: str
    what: What
    value: int | None
    """Largest value that trained inside the budget; null when not even the smallest does."""
    first_failing_value: int | None
    """Smallest value that did not; null when the largest that is tried fits."""
    resolution: Resolution
    budget_bytes: int
    card_bytes: int | None
    """The card's own memory: where it is above the budget, a smaller card was emulated."""
    backend: str
    cell: Cell
    """At the limit; at the smallest value when none fits."""
    settings: dict[str, str]
    """The side's documented settings."""
    probes: list[ProbeResult]
    """In the order in which they were made; reused ones first."""
    validation: Validation | None
    environment: Environment


def write(result: LimitResult, folder: Path) -> Path:
    """Write ``limit.json`` into the run folder, whole or as it was."""
    draft = folder / f".{FILE}"
    with store.disk_errors(folder):
        draft.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return draft.rename(folder / FILE)


def read(path: Path) -> LimitResult:
    """One ``limit.json``. InputError where it is none."""
    try:
        return LimitResult.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise InputError(str(path), f"not the result of a limits search: {first}", "run the search again") from error


def load(folder: Path) -> list[LimitResult]:
    """Every result below a folder such as ``runs/limit`` or ``results/limits``, by name; a broken one is InputError."""
    return sorted((read(path) for path in sorted(folder.rglob(FILE))), key=lambda result: result.name)


def over(one: LimitResult, base: LimitResult) -> tuple[float, float, float | None] | None:
    """The ratio of two limits, and between what it lies: a true limit is below its first failing value (null: no end).

    None where a side has no limit.
    """
    if not one.value or not base.value:
        return None
    low = one.value / (base.first_failing_value or base.value)
    return one.value / base.value, low, one.first_failing_value / base.value if one.first_failing_value else None


def publish(folder: Path, into: Path) -> Path:
    """Copy a search's records below ``into`` (those already there stay) and its result to ``into/limits/NAME``."""
    (result,) = load(folder)
    validation = [p for p in (result.validation.at_limit, result.validation.above) if p] if result.validation else []
    wanted = {probe.record_id for probe in [*result.probes, *validation]}
    for item in store.load(folder)[0]:
        if item.record.id in wanted and not (into / item.record.cell.slug / item.record.id).exists():
            store.publish(item, into)
    target = into / "limits" / result.name
    with store.disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / FILE, target / FILE)
    return target / FILE


def table(result: LimitResult) -> Table:
    """The search for a terminal: one row a probe, and the answer below."""
    cell, budget = result.cell, result.budget_bytes / GIB
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    shown = Table(
        title=escape(f"{cell.model} {cell.precision} with {result.backend} in {budget:g} GiB\nsettings: {settings}"),
        title_justify="left", caption=escape(_answer(result)), caption_justify="left",
    )  # fmt: skip
    for name in (result.what, "status", "fits", "NVML process GiB", "tensors GiB", "outside GiB", "why not"):
        shown.add_column(name, justify="right" if "GiB" in name or name == result.what else "left")
    extra = [p for p in (result.validation.at_limit, result.validation.above) if p] if result.validation else []
    for probe in [*result.probes, *extra]:
        note = "earlier" if probe.reused else "again" if probe.repeat else ""
        shown.add_row(
            f"{probe.value:,}", " ".join(filter(None, [probe.status, note and f"({note})"])),
            "[green]yes[/]" if probe.fits else "[red]no[/]", *map(_gib, (
                probe.nvml_process_peak_bytes, probe.torch_allocated_peak_bytes, probe.outside_allocator_bytes,
            )), escape(probe.reason or ""),
        )  # fmt: skip
    return shown


def _answer(result: LimitResult) -> str:
    unit, budget = UNIT[result.what], f"{result.budget_bytes / GIB:g} GiB"
    if result.value is None:
        lines = [f"{result.what}: not even {result.first_failing_value:,} ({unit}) trains inside {budget}"]
    elif result.first_failing_value is None:
        lines = [f"{result.what}: {result.value:,} ({unit}) trains inside {budget}, and no larger value is tried"]
    else:
        lines = [
            f"{result.what}: {result.value:,} ({unit}) trains inside {budget}, {result.first_failing_value:,} does not"
        ]
    if result.card_bytes is not None and result.card_bytes > result.budget_bytes:
        lines.append(f"emulated: the card has {result.card_bytes / GIB:.1f} GiB, the allocator was capped")
    if all(probe.nvml_process_peak_bytes is None for probe in result.probes):
        lines.append("no NVML here: the process's peak was not checked against the budget")
    if result.validation:
        lines.append(f"validation in fresh processes: {'holds' if result.validation.holds else 'DOES NOT HOLD'}")
    return "\n".join(lines)


def _gib(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / GIB:.2f}"
