"""Runs a search's probes through the ordinary executor, judges their records, and puts the result together."""

from collections.abc import Callable
from typing import Any

from bench import executor, oom
from bench.errors import InputError
from bench.executor import Setting
from bench.health import computed_well
from bench.limit import search
from bench.limit.family import GIB, STEP, Family
from bench.limit.guess import Guess
from bench.limit.result import LimitResult, ProbeResult, Resolution, Validation
from bench.plan import Job
from bench.progress import Progress
from bench.record import PhaseName, Record
from bench.store import Store
from bench.vram_cap import RESERVE_BYTES

TRAINING: tuple[PhaseName, ...] = ("import", "load", "adapter", "warmup", "steady")
"""Phases that are held to the budget; what the harness itself does afterwards (profile, save, probe) is not."""
SUITE = "limit-"
"""What a search's records give as their suite begins with this."""
AIM = 0.98
"""A guess is aimed at a little below, since a probe that fits says more."""
START = {"max_length": 4096, "batch_size": 4, "r": 64}
"""Where a search starts when the memory model does not know the cells."""


def run(
    family: Family,
    setting: Setting,
    store: Store,
    progress: Callable[[], Progress],
    *,
    name: str,
    say: Callable[[str], None] = lambda line: None,
    validate: bool = False,
) -> LimitResult:
    """Search, inside ``store.locked()``; every probe is a record in the store, and earlier ones are reused.

    ``progress`` makes the view of one probe; ``say`` gets a line before and after each. Raises InputError when a probe
    ends in a way that says nothing about memory.
    """
    prober = Prober(family, setting, store, progress, say)
    found = search.search(prober.trial, family.grid, prober.guess, prober.known())
    value = family.grid[0] if found.fits is None else found.fits
    gpus, index = setting.environment.gpus, setting.device_index
    assert family.base.vram_budget_bytes is not None
    return LimitResult(
        name=name, what=family.what, value=found.fits, first_failing_value=found.fails,
        resolution=Resolution(step=STEP[family.what], relative=search.RELATIVE),
        budget_bytes=family.base.vram_budget_bytes, card_bytes=None if index is None else gpus[index].vram_bytes,
        backend=family.base.backend, cell=family.at(value), settings=family.settings, probes=list(prober.probes),
        validation=_validate(prober, found.fits) if validate and found.fits is not None else None,
        environment=setting.environment,
    )  # fmt: skip


def _validate(prober: "Prober", value: int) -> Validation:
    higher = search.above(prober.family.grid, value)
    at_limit = prober.probe(value, repeat=1)
    above = None if higher is None else prober.probe(higher, repeat=1)
    return Validation(at_limit=at_limit, above=above, holds=at_limit.fits and not (above and above.fits))


class Prober:
    """Makes the probes of one search and remembers what they said."""

    def __init__(
        self,
        family: Family,
        setting: Setting,
        store: Store,
        progress: Callable[[], Progress],
        say: Callable[[str], None],
    ) -> None:
        self.family, self.probes = family, list[ProbeResult]()
        self._setting, self._store, self._progress, self._say = setting, store, progress, say
        self._prepared: set[int] = set()
        self._model = Guess.of(family.base)
        self._records = [item.record for item in store.load()[0]]

    def known(self) -> dict[int, bool]:
        """What earlier records of this search's cells say, by value; they become its first probes."""
        for record in self._records:
            value = getattr(record.cell, self.family.what)
            cell = self.family.at(value) if value in self.family.grid else None
            if cell and self._answers(record, Job(cell, 0)):
                self.probes.append(judge(record, self.family, reused=True))
        return {probe.value: probe.fits for probe in self.probes}

    def _answers(self, record: Record, job: Job) -> bool:
        """Whether an earlier record says what the job would; contaminated ones do where they computed well."""
        kept = record.status in executor.KEEP or computed_well(record)
        return kept and executor.is_of(record, job, self._setting.environment)

    def trial(self, value: int) -> bool:
        """Whether the value trains inside the budget, by a probe in a fresh process."""
        probe = self.probe(value)
        self.probes.append(probe)
        return probe.fits

    def probe(self, value: int, *, repeat: int = 0) -> ProbeResult:
        """One probe, or the record of an earlier one."""
        job = Job(self.family.at(value), repeat)
        earlier = [record for record in self._records if self._answers(record, job)]
        if earlier:
            return judge(earlier[-1], self.family, reused=True)
        if job.cell.train_examples not in self._prepared:
            executor.prepare([job.cell], self._setting)
            self._prepared.add(job.cell.train_examples)
        self._say(f"probe: {self.family.what} {value:,}{' again' if repeat else ''}")
        view = self._progress()
        view.start([job], 0)
        try:
            (record,) = executor.run([job], self._setting, self._store, view)
        finally:
            view.stop()
        probe = judge(record, self.family, reused=False)
        self._say(f"{self.family.what} {value:,} {'fits' if probe.fits else f'does not fit: {probe.reason}'}")
        return probe

    def guess(self) -> float:
        """The largest value that should fit, by the memory model and the probes that trained."""
        if self._model is None:
            return START[self.family.what]
        free_bytes = (self.family.base.vram_budget_bytes or 0) - RESERVE_BYTES
        grid, scale = self.family.grid, self._scale(self._model)
        low, high = 0, len(grid) - 1
        while low < high:
            middle = (low + high + 1) // 2
            fits = self._model.need_bytes(self.family.at(grid[middle]), scale) <= free_bytes
            low, high = (middle, high) if fits else (low, middle - 1)
        return AIM * grid[low]

    def _scale(self, model: Guess) -> float | None:
        """Measured growth over the model's, at the largest value that trained; None before there is one."""
        trained = [p for p in self.probes if p.fits and p.torch_allocated_peak_bytes and p.outside_allocator_bytes]
        if not trained:
            return None
        last = max(trained, key=lambda probe: probe.value)
        measured_bytes = (last.torch_allocated_peak_bytes or 0) + (last.outside_allocator_bytes or 0)
        return model.scale(self.family.at(last.value), measured_bytes)


def judge(record: Record, family: Family, *, reused: bool) -> ProbeResult:
    """Whether the record's value fits. Raises InputError for an end that says nothing about the GPU's memory.

    A run beside other processes counts: what it took is its own (bench.health), and so is running out of memory where
    the cap refused (bench.oom).
    """
    value, budget_bytes = getattr(record.cell, family.what), family.base.vram_budget_bytes or 0
    peak_bytes = training_peak(record, "nvml_process_peak_bytes")
    reason = None
    if record.status == "oom":
        _check_oom(record, family)
        reason = f"out of memory in {record.failed_phase}"
    elif not computed_well(record):
        told = f"the probe ended as {record.status}: {record.message}"
        mend = f"records/{record.cell.slug}/{record.id}/worker.log says more; the same command goes on from here"
        if record.status == "unsupported":
            mend = "give a larger --vram, or other settings"
        raise InputError(f"{family.what} {value}", told, mend)
    elif record.device_index is not None and peak_bytes is None:
        raise InputError(
            f"{family.what} {value}", "NVML told no memory of the process, so the budget cannot be checked",
            "run where `nvidia-smi` shows memory per process",
        )  # fmt: skip
    elif peak_bytes is not None and peak_bytes > budget_bytes:
        reason = f"trained, but NVML's process peak is {peak_bytes / GIB:.2f} GiB"
    return ProbeResult(
        value=value, repeat=record.repeat, status=record.status, fits=reason is None, reason=reason,
        record_id=record.id, reused=reused, nvml_process_peak_bytes=peak_bytes,
        torch_allocated_peak_bytes=training_peak(record, "torch_allocated_peak_bytes"),
        torch_reserved_peak_bytes=training_peak(record, "torch_reserved_peak_bytes"),
        outside_allocator_bytes=_outside(record), wall_s=record.wall_s,
    )  # fmt: skip


def _check_oom(record: Record, family: Family) -> None:
    """Raise where it was not this process's budget that ran out."""
    where = f"{family.what} {getattr(record.cell, family.what)}"
    if oom.of_host(record):
        raise InputError(where, "the host's memory ran out, not the GPU's", "run it on a host with more memory")
    if not oom.own(record):
        raise InputError(
            where, f"out of memory beside {oom.others(record)} other process(es) on the GPU, and not for certain by "
            "the cap: says nothing about the budget", "stop them, and run again with another --out",
        )  # fmt: skip


def is_probe(record: Record) -> bool:
    """Whether a search made the record."""
    return record.suite.startswith(SUITE)


def training_peak(record: Record, meter: str) -> int | None:
    """Bytes of a meter, in the phases that are held to the budget."""
    peaks: list[Any] = [getattr(phase, meter) for phase in record.phases if phase.name in TRAINING]
    return max((peak for peak in peaks if peak is not None), default=None)


def _outside(record: Record) -> int | None:
    read = [e.effective for e in record.audit if e.name == "vram_outside_allocator_bytes" and e.effective]
    return int(read[0]) if read else None
