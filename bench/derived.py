"""Statistics derived from one record: its raw samples go in, medians, rates and peaks come out; nothing is stored."""

from collections.abc import Callable, Sequence
from statistics import fmean, median, quantiles
from typing import Any, Literal, TypeVar, get_args

from bench.cell import Frozen
from bench.errors import InputError
from bench.flops import peak_bf16_flops, step_flops
from bench.health import computed_well
from bench.record import PhaseName, Record, Status
from bench.steady import Steady, steady

Meter = Literal["torch_allocated", "torch_reserved", "nvml_process", "nvml_device"]
OWN_METERS: tuple[Meter, ...] = ("torch_allocated", "torch_reserved", "nvml_process")
"""What a process takes itself: another process on the GPU does not change it (bench.health)."""
STARTUP: tuple[PhaseName, ...] = ("import", "load", "adapter", "warmup")
METERS: tuple[Meter, ...] = get_args(Meter)
T = TypeVar("T")
ConfigOf = Callable[[Record], dict[str, Any] | None]
"""Finds the model configuration (a transformers config as a dict) of a record's cell, or None where it is unknown."""


class TrainerCheck(Frozen):
    """Throughput by Trainer's own token counter and log clock, beside ours over the very same steps.

    Where nothing is untimed, the first step is left out on both sides: Trainer logs ends of steps only.
    """

    counts: Literal["real", "padded", "neither"]
    """Whose token count Trainer's equals exactly; with "neither" the comparison is with real tokens."""
    tokens_per_s: float
    own_tokens_per_s: float
    relative_difference: float
    """Trainer's over ours, less one."""


class Derived(Frozen):
    """Statistics of one record. Throughput is null unless the run ended ok; peaks are of the phases it reached."""

    record_id: str
    status: Status
    timed_steps: int
    """Steps after warm-up: from ``untimed_steps`` on, or from where the step times settled if that is later."""
    settled: bool | None = None
    """False: the step times never settled; null: too few of them to tell."""
    tokens_per_s: float | None = None
    """Real (not padding) tokens over seconds, both summed over the timed steps."""
    padded_tokens_per_s: float | None = None
    """The same with every position computed."""
    tokens_per_s_by_median_step: float | None = None
    """Mean real tokens of a timed step over the median step time: not moved by a few slow steps."""
    samples_per_s: float | None = None
    step_s_median: float | None = None
    step_s_p10: float | None = None
    step_s_p90: float | None = None
    gpu_work_s: float | None = None
    """Seconds in GPU kernels, summed, of a step's forward and backward passes: the middle one of the profiled passes
    times the accumulation. Copies between host and device are left out. Null on a CPU."""
    gpu_share: float | None = None
    """``gpu_work_s`` over the median step: what is missing to 1 is the optimizer, the data and waiting for the CPU or
    for copies."""
    mfu: float | None = None
    """Model FLOPs utilisation over the timed steps, padded tokens (see bench.flops); null where the GPU's peak or the
    architecture is unknown, where MIG hands out part of a GPU, or where fp32 weights make bf16's peak the wrong one."""
    startup_s: float | None = None
    """Import, load, adapter and warm-up: everything before the steady steps but evaluation."""
    training_peaks: dict[Meter, int | None]
    """Bytes; the highest of the warm-up and steady phases."""
    load_peaks: dict[Meter, int | None]
    """Bytes; the load phase."""
    trainer: TrainerCheck | None = None


def known_config(record: Record) -> dict[str, Any] | None:
    """The configuration of the record's model from the catalogue, the package or the hub's cache, without a network.

    A local folder may have changed since the run, and a name may have left the catalogue: None, and MFU is unknown.
    """
    from bench.models.sources import config_for

    try:
        return None if record.cell.source == "local" else config_for(record.cell)
    except (InputError, ValueError):  # ValueError: no hub id can be so
        return None


def derive(record: Record, config_of: ConfigOf = known_config) -> Derived:
    """Statistics of one record; ``config_of`` finds the model configuration that MFU needs."""
    steps, begin = record.steps, steady(record.steps.wall_s, record.cell.untimed_steps)
    seconds = steps.wall_s[begin.first :]
    real, padded, samples = (s[begin.first :] for s in (steps.real_tokens, steps.padded_tokens, steps.samples))
    peaks = {
        "training_peaks": {meter: _training_peak(record, meter) for meter in METERS},
        "load_peaks": {meter: _phase_peak(record, "load", meter) for meter in METERS},
    }
    base = {"record_id": record.id, "status": record.status, "timed_steps": len(seconds), **peaks}
    if record.status != "ok" or not seconds:
        return Derived.model_validate(base)

    middle, work_s = median(seconds), _gpu_work_s(record)
    tenths = quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [middle] * 9
    return Derived.model_validate({
        **base,
        "settled": begin.settled,
        "tokens_per_s": _rate(real, seconds),
        "padded_tokens_per_s": _rate(padded, seconds),
        "tokens_per_s_by_median_step": fmean(real) / middle if real else None,
        "samples_per_s": _rate(samples, seconds),
        "step_s_median": middle,
        "step_s_p10": tenths[0],
        "step_s_p90": tenths[-1],
        "gpu_work_s": work_s,
        "gpu_share": work_s / middle if work_s else None,
        "mfu": _mfu(record, seconds, padded, samples, config_of),
        "startup_s": _startup_s(record),
        "trainer": _trainer_check(record, begin),
    })  # fmt: skip


def peak_counts(record: Record, meter: Meter) -> bool:
    """Whether the record's training peak under that meter can be used: of a run that ended ok any, of a contaminated
    one that computed well those of its own process."""
    return record.status == "ok" or (meter in OWN_METERS and computed_well(record))


def values(derived: Sequence[Derived], read: Callable[[Derived], T | None]) -> list[T]:
    """What ``read`` gives of each run that has it."""
    return [value for one in derived if (value := read(one)) is not None]


def middle(derived: Sequence[Derived], read: Callable[[Derived], float | None]) -> float | None:
    """Median over the runs that have it; None where none has."""
    known = values(derived, read)
    return median(known) if known else None


def _rate(amounts: list[int], seconds: list[float]) -> float | None:
    return sum(amounts) / sum(seconds) if amounts else None


def _phase_peak(record: Record, name: PhaseName, meter: Meter) -> int | None:
    phase = record.phase(name)
    return None if phase is None else getattr(phase, f"{meter}_peak_bytes")


def _training_peak(record: Record, meter: Meter) -> int | None:
    """Highest of warm-up and steady; null when the steady phase ran unmetered: warm-up alone would pass for it."""
    steady = _phase_peak(record, "steady", meter)
    if steady is None and record.phase("steady") is not None:
        return None
    known = [peak for peak in (_phase_peak(record, "warmup", meter), steady) if peak is not None]
    return max(known, default=None)


def _startup_s(record: Record) -> float | None:
    walls = {phase.name: phase.wall_s for phase in record.phases}
    if not {"import", "load"} <= walls.keys() or (record.cell.untimed_steps and "warmup" not in walls):
        return None
    return sum(walls.get(name, 0.0) for name in STARTUP)


def _gpu_work_s(record: Record) -> float | None:
    """Only where the profiled pass was seen to compute each block as often as training does: one that leaves out what
    gradient checkpointing computes again is another pass (records of Unsloth before 2026-11-26 have such ones)."""
    seen = record.fingerprint
    if seen is None or seen.device != "cuda" or not any(e.name == "forwards_per_layer" for e in record.audit):
        return None
    return median(seen.passes_s) * record.cell.gradient_accumulation_steps if seen.passes_s else None


def _mfu(
    record: Record, seconds: list[float], padded: list[int], samples: list[int], config_of: ConfigOf
) -> float | None:
    gpu = next((g for g in record.environment.gpus if g.index == record.device_index), None)
    peak = peak_bf16_flops(gpu.name) if gpu and not gpu.mig else None
    if peak is None or record.cell.precision == "fp32" or not record.steps.padded_tokens:
        return None
    config = config_of(record)
    if config is None:
        return None
    work = zip(padded, samples, strict=True)
    try:  # rows of a step differ in length, packed ones hold several examples: the mean length stands for them
        flops = sum(step_flops(config, record.cell, tokens, round(tokens / rows)) for tokens, rows in work)
    except InputError:  # an architecture without a FLOP count
        return None
    return flops / sum(seconds) / peak


def _trainer_check(record: Record, begin: Steady) -> TrainerCheck | None:
    steps, first = record.steps, max(begin.first, 1)
    seen, logged, seconds = steps.trainer_tokens_seen, steps.trainer_log_s, steps.wall_s[first:]
    if not seconds or len(seen) != len(steps.wall_s) or len(logged) != len(steps.wall_s):
        return None
    start, end = seen[first - 1], seen[-1]
    elapsed_s = logged[-1] - logged[first - 1]
    if start is None or end is None or elapsed_s <= 0:
        return None
    tokens, real, padded = end - start, sum(steps.real_tokens[first:]), sum(steps.padded_tokens[first:])
    counts = "real" if tokens == real else "padded" if tokens == padded else "neither"
    own = (padded if counts == "padded" else real) / sum(seconds)
    if own <= 0:
        return None
    rate = tokens / elapsed_s
    return TrainerCheck(
        counts=counts, tokens_per_s=rate, own_tokens_per_s=own, relative_difference=rate / own - 1
    )  # fmt: skip
