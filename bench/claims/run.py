"""Running claims: which suites and experiments a set of claims needs, what of it this machine can run, and running it.

Suites named ``cpu-...`` are for machines without a GPU, all others need one. A cell that several suites share runs
once. What has a record from the same environment is not run again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import executor, suite
from bench import plan as planning
from bench.cell import Cell
from bench.claims import experiment
from bench.claims.claim import Claim, suite_path
from bench.claims.experiment import KINDS, Found, Kind
from bench.claims.verdict import commands
from bench.environment import Environment
from bench.executor import Setting
from bench.plan import Job
from bench.progress import Progress
from bench.record import Record
from bench.store import Loaded, Store

EXPERIMENTS = "experiments"
UNSLOTH_MINUTES, OTHER_MINUTES, EVALUATED_MINUTES, CPU_MINUTES = 1.5, 1.1, 2.8, 0.5
"""Expected of a cell that never ran on this kind of GPU: start, compilation, some ten steps of an 8B model."""


@dataclass(frozen=True)
class SuiteJobs:
    """What is left to run of one suite."""

    made: suite.Suite
    jobs: list[Job]
    done: int
    claims: list[str]
    minutes: float


@dataclass(frozen=True)
class ClaimsPlan:
    """What the claims need, in the order it runs."""

    suites: list[SuiteJobs] = field(default_factory=list)
    experiments: list[tuple[Kind, list[str]]] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    """Commands of their own: limits searches and kernel timings."""
    left_out: list[str] = field(default_factory=list)
    """What does not run here or now, each with the reason."""

    @property
    def minutes(self) -> float:
        return sum(one.minutes for one in self.suites) + sum(kind.minutes for kind, _ in self.experiments)


def plan(
    claims: Sequence[Claim], machine: Environment, known: Sequence[Record], found: Sequence[Found],
    *, gpu_minutes: float | None = None, fresh: bool = False,
) -> ClaimsPlan:  # fmt: skip
    """Plan the claims on this machine.

    ``known`` and ``found`` are records and experiments that need not be made again (``fresh``: all are). With
    ``gpu_minutes``, jobs are taken in order until their estimate would pass it.
    """
    made = ClaimsPlan()
    seen: set[tuple[Cell, int]] = set()
    left = gpu_minutes if gpu_minutes is not None else float("inf")
    for claim in claims:
        if claim.not_testable:
            made.left_out.append(f"{claim.id}: not testable here: {claim.not_testable}")
    for name in dict.fromkeys(name for claim in claims for part in claim.parts for name in part.suites):
        asking = [claim.id for claim in claims if any(name in part.suites for part in claim.parts)]
        if needs_gpu(name) != bool(machine.gpus):
            where = "needs an NVIDIA GPU" if needs_gpu(name) else "is for machines without a GPU"
            made.left_out.append(f"suite {name} {where} ({', '.join(asking)})")
            continue
        loaded = suite.load(suite_path(name))
        wanted = {cell for claim in claims for part in claim.parts if name in part.suites for cell in part.cells()}
        jobs = planning.plan(loaded, machine=machine, history=list(known)).jobs
        jobs = tuple(job for job in jobs if job.cell in _needed(wanted, loaded) and (job.cell, job.repeat) not in seen)
        seen |= {(job.cell, job.repeat) for job in jobs}
        todo = [job for job in jobs if fresh or not executor.is_done(job, list(known), machine)]
        taken: list[Job] = []
        for job in todo:
            if (cost := _minutes(job, machine)) <= left:
                taken.append(job)
                left -= cost
        if len(taken) < len(todo):
            made.left_out.append(f"suite {name}: {len(todo) - len(taken)} runs are past --gpu-minutes")
        minutes = sum(_minutes(job, machine) for job in taken)
        made.suites.append(SuiteJobs(loaded, taken, len(jobs) - len(todo), asking, minutes))
    for name in dict.fromkeys(part.experiment for claim in claims for part in claim.parts if part.experiment):
        kind = KINDS[name]
        asking = [claim.id for claim in claims if any(part.experiment == name for part in claim.parts)]
        if not fresh and any(_is(kind, one, machine) for one in found):
            continue
        made.experiments.append((kind, asking))
    own = {c for claim in claims for c in commands(claim) if not c.startswith("peftmark claims")}
    if machine.gpus:
        made.elsewhere.extend(sorted(own))
    elif own:
        made.left_out.append(f"{len(own)} limits searches and kernel timings need an NVIDIA GPU")
    return made


def needs_gpu(name: str) -> bool:
    """Whether the suite is for GPUs."""
    return not name.startswith("cpu-")


def _needed(wanted: set[Cell], loaded: suite.Suite) -> set[Cell]:
    """The cells that parts read, and those that differ from them in the seed alone: yardsticks of the loss curve."""
    twins = {cell.twin_key("seed") for cell in wanted}
    return {cell for cell in loaded.cells() if cell.twin_key("seed") in twins}


def _minutes(job: Job, machine: Environment) -> float:
    """Of earlier runs of this cell on this kind of GPU, else a rough expectation."""
    if job.unsupported:
        return 0.0
    if job.gpu_minutes is not None:
        return job.gpu_minutes
    if not machine.gpus:
        return CPU_MINUTES
    if job.cell.eval_examples:
        return EVALUATED_MINUTES
    return UNSLOTH_MINUTES if job.cell.backend == "unsloth" else OTHER_MINUTES


def _is(kind: Kind, one: Found, machine: Environment) -> bool:
    record = one.record
    return (
        record.experiment == kind.name
        and record.settings == kind.settings
        and record.environment.fingerprint == machine.fingerprint
    )


def run(
    made: ClaimsPlan, store: Store, setting_of: Callable[[suite.Suite], Setting], progress: Callable[[], Progress],
    say: Callable[[str], None],
) -> list[Record]:  # fmt: skip
    """Run what was planned into the store and its ``experiments`` folder; the records made."""
    done: list[Record] = []
    for kind, _ in made.experiments:
        experiment.run(kind, store.root / EXPERIMENTS, say=say)
    for one in made.suites:
        if not one.jobs:
            continue
        setting = setting_of(one.made)
        if can := [job.cell for job in one.jobs if not job.unsupported]:
            executor.prepare(can, setting)
        view = progress()
        view.start(one.jobs, done_already=one.done)
        try:
            done += executor.run(one.jobs, setting, store, view)
        finally:
            view.stop()
    return done


def publish(records: Sequence[Loaded], found: Sequence[Found], into: Path) -> list[Path]:
    """Copy records and experiments that are not there yet into ``into``; what was copied."""
    from bench.store import publish as publish_record

    copied = []
    for one in records:
        if not (into / one.record.cell.slug / one.record.id).exists():
            copied.append(publish_record(one, into))
    return copied + [experiment.publish(one, into) for one in found]
