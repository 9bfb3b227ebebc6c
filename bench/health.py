"""Whether the GPU was in a condition to be measured while a cell ran: the one place where that is decided.

A pure function of the sampler's rows and of the executor's look at the GPU before the cell. Each reason makes an
otherwise good run ``contaminated``:

- another compute process on the GPU, before the cell started or while it ran;
- a thermal or hardware slowdown among NVML's clocks event reasons in any steady sample. One sample suffices: a GPU at
  its thermal limit regulates around it, between the samples too;
- the SM clock more than ``CLOCK_DROP`` below its median over the steady phase in more than ``CLOCK_DROP_SHARE`` of the
  samples, power cap and idle apart;
- an uncorrected ECC error or an Xid error (the driver's word for a GPU fault) while the cell ran.

**The power cap is no reason.** A GPU that is kept busy runs at its power limit by design, and what clock it holds there
follows from the work: of the committed H100 runs of an 8B model, 29 to 99 % of the steady samples are power-capped,
with clocks down to 0.79 of the median, while no other sample is below 0.98 of it. Both sides meet the same limit, which
is part of the environment that must be equal. The cap shows in the lowest clock and in the timeline.

A clock that is low throughout has a low median and is no drop: it is for the reader of the median to see.

**Time and the GPU's memory are spoiled, answers and the process's own memory are not.** Another process or a slower
clock changes how long a step takes and how full the GPU is, not what a process computes and takes: a SmolLM2 cell run
alone and run beside five others has the same peaks of torch allocated, torch reserved and NVML process, with either
backend; so have Llama 8B and Mistral 7B in nf4, within 2 MiB. Losses, gradients and answers of such a run stand, and so
do its own process's peaks (bench.derived.peak_counts); those of a run with an ECC or Xid error do not.
"""

from statistics import median
from typing import Any

from bench.record import Health, Phase, Record

IDLE, POWER_CAP = 0x1, 0x4
SLOWDOWNS = {
    0x8: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}  # fmt: skip
"""Bits of nvmlDeviceGetCurrentClocksEventReasons that are a fault of the machine (nvml.h, nvmlClocksEventReasons)."""
CLOCK_DROP = 0.10
"""Far more than the widest dip of an uncapped H100 sample below its median (1.5 %)."""
CLOCK_DROP_SHARE = 0.01
"""Clock and reasons are two readings: a cap that ends between them must not condemn a run. So few samples cannot move a
median step."""


def computed_well(record: Record) -> bool:
    """Whether what the run computed, and the memory it took for it, can be used, whatever disturbed its clock."""
    if record.status == "contaminated":
        return not (record.health and (record.health.ecc_errors or record.health.xid_errors))
    return record.status == "ok"


def judge(rows: dict[str, list[Any]], steady: Phase | None, *, other_processes_before: int | None) -> Health:
    """The GPU's health; ``rows`` are the timeline's columns (none where the sampler wrote nothing).

    What no row could tell is null: a column that is missing or null throughout gives no reading and no reason.
    """
    others = _known(rows, "other_processes")
    during = max(others, default=None)
    inside = [n for n, t in enumerate(rows.get("t_s", [])) if steady and 0 <= t - steady.start_s <= steady.wall_s]
    masks = _known(rows, "throttle_reasons", inside)
    slowed = [mask for mask in masks if any(mask & bit for bit in SLOWDOWNS)]
    clocks = _known(rows, "sm_clock_mhz", inside)
    ecc = _known(rows, "ecc_uncorrected")
    ecc_errors = ecc[-1] - ecc[0] if len(ecc) > 1 else None
    seen = _known(rows, "xid")
    xids = [code for codes in seen for code in codes] if seen else None

    reasons = []
    if other_processes_before:
        reasons.append(f"{other_processes_before} other compute process(es) on the GPU before the cell started")
    if during:
        reasons.append(f"up to {during} other compute process(es) on the GPU while the cell ran")
    if slowed:
        names = [name for bit, name in SLOWDOWNS.items() if any(mask & bit for mask in slowed)]
        share = f"{len(slowed)} of {len(masks)} steady samples ({len(slowed) / len(masks):.1%})"
        reasons.append(f"{', '.join(names)} in {share}")
    if dropped := _clock_drop(rows, inside):
        reasons.append(dropped)
    if ecc_errors:
        reasons.append(f"{ecc_errors} uncorrected ECC error(s) while the cell ran")
    if xids:
        reasons.append(f"Xid error(s) {', '.join(map(str, xids))} while the cell ran")
    return Health(
        reasons=reasons,
        other_processes_before=other_processes_before,
        other_processes_during=during,
        throttled_share=len(slowed) / len(masks) if masks else None,
        sm_clock_mhz_median=median(clocks) if clocks else None,
        sm_clock_mhz_min=min(clocks, default=None),
        ecc_errors=ecc_errors,
        xid_errors=xids,
    )


def _clock_drop(rows: dict[str, list[Any]], inside: list[int]) -> str | None:
    """What to say of steady samples whose clock fell for no reason that load explains; None when too few did.

    A sample whose reasons could not be read may be power-capped, so it cannot count as a drop.
    """
    clocks, masks = rows.get("sm_clock_mhz", []), rows.get("throttle_reasons", [])
    pairs = [(clocks[n], masks[n]) for n in inside if clocks[n] is not None and masks[n] is not None]
    if not pairs:
        return None
    middle = median(clock for clock, _ in pairs)
    low = [clock for clock, mask in pairs if clock < (1 - CLOCK_DROP) * middle and not mask & (POWER_CAP | IDLE)]
    if len(low) <= CLOCK_DROP_SHARE * len(pairs):
        return None
    return (
        f"SM clock more than {CLOCK_DROP:.0%} below its median of {middle:.0f} MHz in {len(low)} of {len(pairs)} "
        f"steady samples, down to {min(low)} MHz, neither power-capped nor idle"
    )


def _known(rows: dict[str, list[Any]], column: str, where: list[int] | None = None) -> list[Any]:
    """The column's readings that are not null, of all rows or of those at ``where``."""
    values = rows.get(column, [])
    if where is not None and values:
        values = [values[n] for n in where]
    return [value for value in values if value is not None]
