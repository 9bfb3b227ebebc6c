"""A finding as text: the cells of the headline table, the same in the page, the Markdown and the terminal."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cell import Cell
from bench.finding import Accuracy, Finding, Interval, Memory, Parity, Side
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
    memory: list[MemoryCell]
    baseline_accuracy: str
    candidate_accuracy: str
    processes: str
    break_even: str
    parity: str
    status: str
    why: str
    runs: list[tuple[str, list[str]]]
    """Backend and record ids of each side."""


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
        method="full" if cell.method == "full" else f"{cell.method} r{cell.r}",
        precision=cell.precision,
        recipe=f"{cell.batch_size} x {cell.gradient_accumulation_steps} rows, {cell.max_length} tokens",
        extra=", ".join(f"{name}={getattr(cell, name)}" for name in differing),
        baseline=base.backend if base else UNKNOWN,
        candidate=cand.backend if cand else UNKNOWN,
        baseline_rate=_side_rate(base),
        candidate_rate=_side_rate(cand),
        speedup=times(finding.speedup),
        certainty=_certainty(finding),
        memory=[_memory(METER_NAMES[meter], memory) for meter, memory in finding.memory.items()],
        baseline_accuracy=_accuracy(base),
        candidate_accuracy=_accuracy(cand),
        processes=f"{base.processes if base else 0} / {cand.processes if cand else 0}",
        break_even=UNKNOWN if finding.break_even_steps is None else f"{number(finding.break_even_steps)} steps",
        parity=parity_text(finding.parity),
        status=finding.verdict,
        why="; ".join(filter(None, [finding.why, *_lost_runs(base), *_lost_runs(cand)])),
        runs=[(side.backend, side.record_ids) for side in (base, cand) if side],
    )


def parity_text(parity: Parity | None) -> str:
    """The facts of parity in a line."""
    if parity is None:
        return UNKNOWN
    facts = {
        "token stream": parity.same_stream, "training data": parity.same_train_data, "weights": parity.same_weights,
        "initial adapter": parity.same_initial_adapter,
    }  # fmt: skip
    said = []
    for word, value in (("same", True), ("different", False), ("unknown", None)):
        if names := [name for name, same in facts.items() if same is value]:
            said.append(f"{word} {' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}")
    if parity.stream_seen_by_model is False:
        said.append("the stream's first step was not what the model saw")
    if parity.step1_loss_baseline is not None and parity.step1_loss_candidate is not None:
        said.append(f"step-1 loss {parity.step1_loss_baseline:.4f} vs {parity.step1_loss_candidate:.4f}")
    return "; ".join(said)


def interval_text(interval: Interval) -> str:
    return f"{100 * interval.level:.0f} % [{interval.low:.2f}, {interval.high:.2f}]"


def _certainty(finding: Finding) -> str:
    if finding.speedup is None:
        return ""
    if finding.speedup_interval:
        return interval_text(finding.speedup_interval)
    return "n=1, no interval" if finding.no_interval_because else "no interval"


def _side_rate(side: Side | None) -> str:
    if side is None:
        return UNKNOWN
    return rate(side.tokens_per_s) if side.status == "ok" else side.status


def _memory(name: str, memory: Memory) -> MemoryCell:
    span, known = memory.interval, memory.baseline_bytes is not None or memory.candidate_bytes is not None
    return MemoryCell(
        meter=name,
        saving=percent(memory.saving) + (f" [{percent(span.low)}, {percent(span.high)}]" if span else ""),
        peaks_gib=f"{gib(memory.baseline_bytes)} → {gib(memory.candidate_bytes)}" if known else UNKNOWN,
    )


def _accuracy(side: Side | None) -> str:
    if side is None or (side.accuracy_before is None and side.accuracy_after is None):
        return UNKNOWN
    return f"{_score(side.accuracy_before)} → {_score(side.accuracy_after)}"


def _score(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return UNKNOWN
    error = "" if accuracy.stderr is None else f" ± {100 * accuracy.stderr:.1f}"
    return f"{100 * accuracy.value:.1f}{error} %"


def _lost_runs(side: Side | None) -> list[str]:
    """Failed runs of a side that also has finished ones; a side without any speaks through the finding's why."""
    if side is None or side.status != "ok":
        return []
    return [f"{side.backend}: another run ended {f.status}" + (f": {f.message}" if f.message else "")
            for f in side.failures]  # fmt: skip
