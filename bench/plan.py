"""The plan: which jobs a suite makes on this machine, in what order, which cannot run here and why, and what they cost.

The order pairs the backends: repeats of cells that differ in the backend alone are interleaved, A B then B A, so that
a drift of the machine falls on both. Cells of one model stay together, so that random weights are written once.
Costs come from earlier records of the same cell on the same kind of GPU, and are unknown otherwise. No torch here.
"""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

from rich.markup import escape
from rich.table import Table

from bench.cell import Cell
from bench.environment import Environment
from bench.errors import InputError
from bench.record import Record
from bench.suite import Suite

BYTES_PER_PARAMETER = {"nf4": 0.5, "int8": 1.0, "bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
"""Of the base weights; a lower bound, since quantised models keep embeddings and norms in 16 bits."""
GIB = 2**30

_but_backend = attrgetter(*(name for name in Cell.model_fields if name != "backend"))
"""What ``Cell.twin_key("backend")`` digests, as a tuple: the same grouping at a fortieth of the time."""


@dataclass(frozen=True)
class Job:
    """One run to make: a cell in one fresh process."""

    cell: Cell
    repeat: int
    unsupported: str | None = None
    """Why it cannot run on this machine."""
    gpu_minutes: float | None = None
    """Median wall-clock of earlier runs of this cell on this kind of GPU."""
    vram_bytes: int | None = None
    """Highest NVML process peak of earlier runs of this cell on this kind of GPU."""

    @property
    def label(self) -> str:
        """The job in a few words, for progress lines: what tells runs apart first, where lines are cut short."""
        rank = "full" if self.cell.method == "full" else f"{self.cell.method} r{self.cell.r}"
        model = self.cell.model.rstrip("/").split("/")[-1]
        return f"{self.cell.backend} {rank} {self.cell.precision} #{self.repeat} {model}"


@dataclass(frozen=True)
class Plan:
    """The jobs of a suite in the order they run."""

    suite: Suite
    jobs: tuple[Job, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the suite file says and probably does not mean."""
        return self.suite.warnings


def plan(suite: Suite, *, machine: Environment, history: list[Record]) -> Plan:
    """Plan ``suite`` on ``machine``.

    Raises InputError, naming every one, for models that do not exist and ranks above a model's hidden size.
    """
    models, cells = _Models(), suite.cells()
    problems = dict.fromkeys(problem for cell in cells for problem in models.problems(cell))
    if problems:
        told = [f"{what}; {mend}" if mend else what for what, mend in problems]
        mend = "change these fields of the suite" if len(told) > 1 else next(iter(problems))[1]
        what = next(iter(problems))[0] if len(told) == 1 else "".join(f"\n  {line}" for line in told)
        raise InputError(str(suite.path), what, mend)
    costs = _costs(machine, history)
    first = {cell: Job(cell, 0, _unsupported(cell, machine, models), *costs.get(cell, (None, None))) for cell in cells}
    jobs = [replace(first[cell], repeat=repeat) for cell, repeat in _ordered(cells, suite.repeats)]
    return Plan(suite, tuple(jobs))


def _ordered(cells: list[Cell], repeats: int) -> Iterable[tuple[Cell, int]]:
    """Cells with their repeats: by model, then by twin group, within it forwards and backwards in turn."""
    models: dict[tuple[object, ...], dict[object, list[Cell]]] = {}
    for cell in cells:
        model = (cell.source, cell.model, cell.seed if cell.source == "random" else None)
        models.setdefault(model, {}).setdefault(_but_backend(cell), []).append(cell)
    for twins in (twins for groups in models.values() for twins in groups.values()):
        for repeat in range(repeats):
            yield from ((cell, repeat) for cell in (twins if repeat % 2 == 0 else reversed(twins)))


def _costs(machine: Environment, history: list[Record]) -> dict[Cell, tuple[float | None, int | None]]:
    """GPU minutes and peak VRAM bytes of each cell that ran on this machine's kind of GPU."""
    if not machine.gpus:
        return {}
    runs: dict[Cell, list[Record]] = {}
    for record in history:
        index = record.device_index or 0
        gpus = record.environment.gpus
        if record.status == "ok" and index < len(gpus) and gpus[index].name == machine.gpus[0].name:
            runs.setdefault(record.cell, []).append(record)
    costs: dict[Cell, tuple[float | None, int | None]] = {}
    for cell, records in runs.items():
        walls_s = [r.wall_s for r in records if r.wall_s is not None]
        peaks = [p.nvml_process_peak_bytes for r in records for p in r.phases if p.nvml_process_peak_bytes is not None]
        costs[cell] = (statistics.median(walls_s) / 60 if walls_s else None, max(peaks, default=None))
    return costs


def _unsupported(cell: Cell, machine: Environment, models: "_Models") -> str | None:
    from bench.backends import unsupported

    return unsupported(cell, machine) or _too_small(cell, machine, models)


def _too_small(cell: Cell, machine: Environment, models: "_Models") -> str | None:
    """Why no GPU of the machine holds the base weights alone, whatever else a run needs."""
    parameters = models.parameters(cell)
    if parameters is None or not machine.gpus:
        return None
    largest = max(machine.gpus, key=lambda gpu: gpu.vram_bytes)
    weights_bytes = parameters * BYTES_PER_PARAMETER[cell.precision]
    if weights_bytes <= largest.vram_bytes:
        return None
    need, has = weights_bytes / GIB, largest.vram_bytes / GIB
    return f"the weights alone need {need:.1f} GiB in {cell.precision}; {largest.name} has {has:.1f} GiB"


class _Models:
    """What is known of the models of a plan, each looked up once."""

    def __init__(self) -> None:
        self._facts: dict[tuple[object, ...], tuple[str | None, str, int | None, int | None]] = {}

    def problems(self, cell: Cell) -> Iterable[tuple[str, str]]:
        """What is wrong with the cell's model or rank, and the mend."""
        fault, mend, hidden_size, _ = self._of(cell)
        if fault:
            yield fault, mend
        elif hidden_size is not None and cell.r is not None and cell.r > hidden_size:
            yield (
                f"r: {cell.r} is above the hidden size of {cell.model}, {hidden_size}",
                f"give a rank from 1 to {hidden_size}",
            )

    def parameters(self, cell: Cell) -> int | None:
        """Published number of parameters; None for a model outside the catalogue."""
        return self._of(cell)[3]

    def _of(self, cell: Cell) -> tuple[str | None, str, int | None, int | None]:
        key = (cell.source, cell.model, cell.trust_remote_code, cell.backend == "fake")
        if key not in self._facts:
            self._facts[key] = self._look_up(cell)
        return self._facts[key]

    def _look_up(self, cell: Cell) -> tuple[str | None, str, int | None, int | None]:
        """Fault and mend, hidden size, parameters; the fake backend has no model to look up."""
        if cell.backend == "fake":
            return None, "", None, None
        from bench.models.catalogue import find
        from bench.models.sources import config_for

        try:
            config = config_for(cell) or {}
        except InputError as error:
            return f"{error.where}: {error.what}", error.mend, None, None
        hidden_size = config.get("hidden_size") or (config.get("text_config") or {}).get("hidden_size")
        known = None if cell.source == "local" else find(cell.model)
        return None, "", hidden_size, known.published_parameters if known else None


def table(made: Plan) -> Table:
    """The plan for a terminal: one row a cell."""
    jobs = [job for job in made.jobs if job.repeat == 0]
    usual = ["model", "backend", "method", "r", "precision"]
    names = usual + [axis for axis in made.suite.axes if axis not in usual]
    same = [name for name in names if len({getattr(job.cell, name) for job in jobs}) == 1]
    columns = [name for name in names if name not in same]
    title = f"{made.suite.name}: {len(jobs)} cells, {len(made.jobs)} runs"
    shared = ", ".join(f"{name} {_short(getattr(jobs[0].cell, name))}" for name in same)
    shown = Table(title=f"{title}\nall with {escape(shared)}" if same else title, title_justify="left")
    for name in ["#", *columns, "runs", "GPU min", "VRAM GiB", "here"]:
        shown.add_column(name, justify="right" if name in ("#", "r", "runs", "GPU min", "VRAM GiB") else "left")
    for number, job in enumerate(jobs, 1):
        shown.add_row(
            str(number),
            *(escape(_short(getattr(job.cell, name))) for name in columns),
            str(made.suite.repeats),
            "?" if job.gpu_minutes is None else f"{job.gpu_minutes:.1f}",
            "?" if job.vram_bytes is None else f"{job.vram_bytes / GIB:.1f}",
            f"[yellow]{escape(job.unsupported)}[/]" if job.unsupported else "[green]runs[/]",
        )
    shown.caption = "\n".join([_total(made), *(f"warning: {escape(warning)}" for warning in made.warnings)])
    shown.caption_justify = "left"
    return shown


def _short(value: object) -> str:
    return "-" if value is None else ", ".join(value) if isinstance(value, tuple) else str(value)


def _total(made: Plan) -> str:
    can = [job for job in made.jobs if job.unsupported is None]
    known = [job.gpu_minutes for job in can if job.gpu_minutes is not None]
    cost = f"{sum(known):.0f} GPU minutes for the {len(known)} of them seen before" if known else "GPU minutes unknown"
    return f"{len(can)} of {len(made.jobs)} runs can run here; {cost}"


def as_json(made: Plan) -> str:
    """The plan as JSON text: the suite, its warnings, and each job in order."""
    jobs = [
        {
            "cell": job.cell.model_dump(mode="json"),
            "cell_digest": job.cell.digest,
            "repeat": job.repeat,
            "unsupported": job.unsupported,
            "gpu_minutes": job.gpu_minutes,
            "vram_bytes": job.vram_bytes,
        }
        for job in made.jobs
    ]
    return json.dumps({"suite": made.suite.name, "warnings": list(made.warnings), "jobs": jobs}, indent=2)
