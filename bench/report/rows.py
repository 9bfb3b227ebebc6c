"""A finding as text: the cells of the headline table, the same in the page, the Markdown and the terminal."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cell import Cell
from bench.finding import Accuracy, AccuracyFinding, Finding, Interval, Memory, Side
from bench.fingerprint import Difference
from bench.parity import Parity
from bench.report.format import UNKNOWN, gib, number, percent, rate, times

METER_NAMES = {
    "torch_allocated": "torch allocated", "torch_reserved": "torch reserved", "nvml_process": "NVML process",
    "nvml_device": "NVML device",
}  # fmt: skip
VISIBLE = (
    "model", "source", "method", "r", "precision", "batch_size", "gradient_accumulation_steps", "max_length",
)  # fmt: skip
"""Cell fields that every row shows."""


@dataclass(frozen=True)
class MemoryCell:
    """Saving (with its interval, where there is one) and both peaks under one meter."""

    meter: str
    saving: str
    peaks_gib: str


@dataclass(frozen=True)
class Row:
    """One line of the headline table."""

    model: str
    random_weights: bool
    method: str
    precision: str
    recipe: str
    """Batch, gradient accumulation and longest sequence."""
    extra: str
    """Other settings, where rows would look alike without them."""
    baseline: str
    candidate: str
    baseline_rate: str
    candidate_rate: str
    speedup: str
    certainty: str
    """The interval, or why there is none."""
    gpu_time: str
    """The ratio of GPU times of a forward and backward."""
    gpu_note: str
    """Its interval, and which share of a step each side's GPU works; empty where it was not profiled."""
    memory: list[MemoryCell]
    baseline_accuracy: str
    candidate_accuracy: str
    processes: str
    break_even: str
    parity: str
    status: str
    why: str
    dispatch: str
    """How the kernels of one backend changed between two sides."""
    controls: str
    """Each side against itself, where there are enough runs."""
    runs: list[tuple[str, list[str]]]
    """Backend and record ids of each side."""


def tuning(cell: Cell) -> str:
    """Method and rank."""
    return "full" if cell.method == "full" else f"{cell.method} r{cell.r}"


def make_rows(findings: Sequence[Finding]) -> list[Row]:
    """The rows of one table; rows that would look alike spell out the settings in which they differ."""
    alike: dict[tuple[object, ...], list[Cell]] = defaultdict(list)
    for finding in findings:
        alike[_visible(finding.cell)].append(finding.cell)
    return [_row(finding, _differing(alike[_visible(finding.cell)])) for finding in findings]


def _visible(cell: Cell) -> tuple[object, ...]:
    return tuple(getattr(cell, name) for name in VISIBLE)


def _differing(cells: Sequence[Cell]) -> list[str]:
    hidden = [name for name in Cell.model_fields if name not in (*VISIBLE, "backend", "custom_task")]
    return [name for name in hidden if len({getattr(cell, name) for cell in cells}) > 1]


def _row(finding: Finding, differing: Sequence[str]) -> Row:
    cell, base, cand = finding.cell, finding.baseline, finding.candidate
    return Row(
        model=cell.model,
        random_weights=cell.source == "random",
        method=tuning(cell),
        precision=cell.precision,
        recipe=f"{cell.batch_size} x {cell.gradient_accumulation_steps} rows, {cell.max_length} tokens",
        extra=", ".join(f"{name}={getattr(cell, name)}" for name in differing),
        baseline=base.backend if base else UNKNOWN,
        candidate=cand.backend if cand else UNKNOWN,
        baseline_rate=_side_rate(base),
        candidate_rate=_side_rate(cand),
        speedup=times(finding.speedup),
        certainty=_certainty(finding),
        gpu_time=times(finding.gpu_work.value if finding.gpu_work else None),
        gpu_note=_gpu_note(finding),
        memory=[_memory(METER_NAMES[meter], memory) for meter, memory in finding.memory.items()],
        baseline_accuracy=_accuracy(base),
        candidate_accuracy=_accuracy(cand),
        processes=f"{base.processes if base else 0} / {cand.processes if cand else 0}",
        break_even=UNKNOWN if finding.break_even_steps is None else f"{number(finding.break_even_steps)} steps",
        parity=parity_text(finding.parity),
        status=finding.verdict,
        why="; ".join(filter(None, [*_cautions(finding), finding.why, *_lost_runs(base), *_lost_runs(cand)])),
        dispatch=_dispatch(finding.dispatch),
        controls="; ".join(filter(None, [_control(base), _control(cand)])),
        runs=[(side.backend, side.record_ids) for side in (base, cand) if side],
    )


def parity_text(parity: Parity | None) -> str:
    """The gate's status and the names of the checks behind it."""
    if parity is None:
        return UNKNOWN
    if parity.status == "ok":
        return f"ok, {sum(check.status == 'ok' for check in parity.checks)} checks"
    return f"{parity.status}: {', '.join(behind(parity))}"


def behind(parity: Parity) -> list[str]:
    """Names of the checks that give a gate that is not ok its status."""
    return [c.name for c in parity.checks if c.status == parity.status and (c.required or c.status == "failed")]


@dataclass(frozen=True)
class AccuracyRow:
    """A paired comparison of accuracy in words."""

    what: str
    sides: str
    result: str
    verdict: str


def accuracy_row(finding: AccuracyFinding) -> AccuracyRow:
    cell, paired = finding.cell, finding.paired
    what = f"{cell.model} {tuning(cell)} {cell.precision}, {finding.task}"
    sides = f"{cell.backend} against {finding.baseline}, {len(finding.seeds)} seed{'s' * (len(finding.seeds) > 1)}"
    if paired is None:
        return AccuracyRow(what, sides, f"not paired: {finding.why}", "not comparable")
    points = [f"{100 * share:+.1f}" for share in (paired.difference, paired.low, paired.high)]
    result = (
        f"{100 * paired.baseline:.1f} % → {100 * paired.candidate:.1f} % of {paired.items} items: "
        f"{points[0]} points, 95 % [{points[1]}, {points[2]}]; margin {100 * paired.margin:.0f} points: "
        f"{paired.verdict}; these items show {100 * paired.mde:.1f} points or more"
    )
    if paired.seed_low is not None and paired.seed_high is not None:
        result += f"; with the seed as the unit [{100 * paired.seed_low:+.1f}, {100 * paired.seed_high:+.1f}]"
    if finding.contaminated:
        runs = len(finding.record_ids)
        result += f"; {finding.contaminated} of {runs} runs contaminated, which sways times and not answers"
    if paired.mcnemar:
        result += f"; McNemar p = {number(paired.mcnemar.p_value, 2)}"
    return AccuracyRow(what, sides, result, paired.verdict)


def interval_text(interval: Interval) -> str:
    return f"{100 * interval.level:.0f} % [{interval.low:.2f}, {interval.high:.2f}]"


def _certainty(finding: Finding) -> str:
    """The verdict and its interval, or why there is none."""
    if finding.speedup is None:
        return ""
    if finding.speedup_interval:
        shown = finding.rates.mde if finding.rates else None
        power = "" if shown is None else f", would show {percent(shown)} or more"
        return f"{finding.speed}, {interval_text(finding.speedup_interval)}{power}"
    counts = [side.processes for side in (finding.baseline, finding.candidate) if side]
    return f"n={min(counts)}, no interval"


def _gpu_note(finding: Finding) -> str:
    if finding.gpu_work is None:
        return ""
    certain = f"{interval_text(finding.gpu_work_interval)}, " if finding.gpu_work_interval else ""
    shares = [percent(side.gpu_share, 0) for side in (finding.baseline, finding.candidate) if side]
    return f"{certain}at work {' / '.join(shares)} of a step"


def _dispatch(difference: Difference | None) -> str:
    if difference is None:
        return ""
    groups = {
        "only in the baseline": [kernel.name for kernel in difference.only_a],
        "only in the candidate": [kernel.name for kernel in difference.only_b],
        "launched another number of times": [kernel.name for kernel in difference.changed],
    }
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in groups.items()
        if names
    ]
    return "kernels: " + ("; ".join(parts) if parts else "the same, equally often")


def _control(side: Side | None) -> str:
    """A side against itself, in words."""
    if side is None or side.control is None:
        return ""
    return f"{side.backend} against itself: {times(side.control.ratio.value)}, {side.control.verdict}"


def _side_rate(side: Side | None) -> str:
    if side is None:
        return UNKNOWN
    return rate(side.tokens_per_s) if side.status == "ok" else side.status


def _memory(name: str, memory: Memory) -> MemoryCell:
    """Savings and peaks; where processes differ by more than the allocator's granule, their range too."""
    sides = [side for side in (memory.baseline, memory.candidate) if side]
    moved = any(side.deterministic is False for side in sides)
    saving = percent(memory.saving)
    if moved and memory.least is not None:
        saving += f" [{percent(memory.least)}, {percent(memory.most)}]"
    middles = [None if side is None else side.median for side in (memory.baseline, memory.candidate)]
    return MemoryCell(
        meter=name, saving=saving, peaks_gib=f"{gib(middles[0])} → {gib(middles[1])}" if sides else UNKNOWN
    )  # fmt: skip


def _accuracy(side: Side | None) -> str:
    if side is None or (side.accuracy_before is None and side.accuracy_after is None):
        return UNKNOWN
    return f"{_score(side.accuracy_before)} → {_score(side.accuracy_after)}"


def _score(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return UNKNOWN
    error = "" if accuracy.stderr is None else f" ± {100 * accuracy.stderr:.1f}"
    return f"{100 * accuracy.value:.1f}{error} %"


def _cautions(finding: Finding) -> list[str]:
    """What a reader must know before the number: unlike conditions, contaminated or unsettled runs."""
    told = [f"compared across {difference}" for difference in finding.across]
    for side in (finding.baseline, finding.candidate):
        if side and side.contaminated:
            told.append(f"{side.backend}: {side.contaminated} of {side.processes} runs were contaminated")
        if side and side.contaminated_peaks:
            runs = f"{side.contaminated_peaks} contaminated run{'s' * (side.contaminated_peaks > 1)}"
            told.append(f"{side.backend}: the process's own peaks take in {runs}")
        if side and side.unsettled:
            told.append(f"{side.backend}: step times of {side.unsettled} of {side.processes} runs never settled")
    return told


def _lost_runs(side: Side | None) -> list[str]:
    """Failed runs of a side that also has finished ones; a side without any speaks through the finding's why."""
    if side is None or side.status != "ok":
        return []
    return [f"{side.backend}: another run ended {f.status}" + (f": {f.message}" if f.message else "")
            for f in side.failures]  # fmt: skip
