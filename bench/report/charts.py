"""Where the marks of the page's small charts go: positions in a drawing, from numbers made elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

from bench.finding import Finding, Side
from bench.report.format import UNKNOWN, gib, rate

WIDTH, HEIGHT, MARGIN = 320, 48, 4


@dataclass(frozen=True)
class Sparkline:
    """Step seconds over a logarithmic axis that spans at least a factor of two, so that noise looks like noise."""

    points: str
    """SVG polyline points."""
    dots: list[tuple[float, float, str]]
    """x, y and title of each step."""
    untimed_width: float
    """Width of the shaded warm-up, from the left."""


@dataclass(frozen=True)
class Bar:
    """One bar: share of its scale's longest, 0 to 100."""

    name: str
    share: float
    text: str
    candidate: bool


@dataclass(frozen=True)
class BarGroup:
    """The bars of one finding."""

    label: str
    bars: list[Bar]


def sparkline(step_s: Sequence[float], untimed: int) -> Sparkline | None:
    """Every raw step, the first ``untimed`` shaded; None where no step was timed."""
    if not step_s or min(step_s) <= 0:
        return None
    low, high = log(min(step_s)), log(max(step_s))
    widen = max(0.0, (log(2) - (high - low)) / 2)
    low, high = low - widen, high + widen
    pitch = (WIDTH - 2 * MARGIN) / max(1, len(step_s))
    dots = []
    for i, value in enumerate(step_s):
        y = HEIGHT - MARGIN - (log(value) - low) / (high - low) * (HEIGHT - 2 * MARGIN)
        dots.append((round(MARGIN + (i + 0.5) * pitch, 1), round(y, 1), f"step {i + 1}: {value:.4g} s"))
    edge = 0.0 if untimed <= 0 else round(MARGIN + min(untimed, len(step_s)) * pitch, 1)
    return Sparkline(points=" ".join(f"{x},{y}" for x, y, _ in dots), dots=dots, untimed_width=edge)


def rate_bars(labels: Sequence[str], findings: Sequence[Finding]) -> list[BarGroup]:
    """Tokens/s of both sides of each finding that has any, each finding to its own scale."""
    groups = [
        _bars([label], [finding], lambda side: side.tokens_per_s, lambda value: f"{rate(value)} tokens/s")
        for label, finding in zip(labels, findings, strict=True)
    ]
    return [group for one in groups for group in one]


def memory_bars(labels: Sequence[str], findings: Sequence[Finding]) -> list[BarGroup]:
    """Training peak under the NVML process meter, both sides of each finding that has any, one scale for all."""
    return _bars(labels, findings, _process_peak, lambda value: f"{gib(value)} GiB")


def _process_peak(side: Side) -> float | None:
    peak = side.training_peaks["nvml_process"]
    return peak.median if peak else None


def _bars(
    labels: Sequence[str],
    findings: Sequence[Finding],
    read: Callable[[Side], float | None],
    text: Callable[[float], str],
) -> list[BarGroup]:
    sides = [[side for side in (finding.baseline, finding.candidate) if side] for finding in findings]
    longest = max((value for row in sides for side in row if (value := read(side))), default=0.0)
    groups = []
    for label, row, finding in zip(labels, sides, findings, strict=True):
        if any(read(side) for side in row):
            bars = [_bar(side, read(side), longest, text, side is finding.candidate) for side in row]
            groups.append(BarGroup(label=label, bars=bars))
    return groups


def _bar(side: Side, value: float | None, longest: float, text: Callable[[float], str], candidate: bool) -> Bar:
    if value is None:
        return Bar(side.backend, 0.0, UNKNOWN if side.status == "ok" else side.status, candidate)
    return Bar(side.backend, round(100 * value / longest, 2), text(value), candidate)
