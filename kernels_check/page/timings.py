"""The speed of kernels from pytest-benchmark's JSON: the file's fields that are read, and the rows made of them.

Share of the roofline: the least time that the machine could take over the median time. That least time is the longer of
bytes / bandwidth and flops / matmul rate; both ceilings are medians measured in the same run, the best of each kind.
Source: Williams, Waterman and Patterson, Roofline (2009).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveFloat, Tag

from bench.environment import Environment

BASELINE = "eager"


class _Read(BaseModel):
    """A part of a file that holds more than is read here."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Stats(_Read):
    """Of one benchmark's rounds, in seconds."""

    median: PositiveFloat
    q1: PositiveFloat
    q3: PositiveFloat
    rounds: int

    def over(self, other: "Stats") -> tuple[float, float, float]:
        """The other's median time over this one's, and from the quartiles that lie furthest apart."""
        return other.median / self.median, other.q1 / self.q3, other.q3 / self.q1


class Timed(_Read):
    """What was timed: one candidate."""

    family: str
    shape: str
    dims: dict[str, int | float | str] = {}
    dtype: str
    direction: str
    candidate: str
    bytes: int = Field(ge=0)
    """Least traffic to and from the GPU's memory that any implementation must cause."""
    flops: int = Field(ge=0)
    cpu_bound_rounds: float = 0.0
    """Share of the rounds in which the GPU waited for the CPU to launch."""


class Ceiling(_Read):
    """What the machine reached: copied bytes, or the operations of a large matrix product."""

    ceiling: Literal["bandwidth", "matmul"]
    bytes: int = 0
    flops: int = 0


class Benchmark(_Read):
    """One entry of the file."""

    name: str
    stats: Stats
    extra_info: Annotated[
        Annotated[Ceiling, Tag("ceiling")] | Annotated[Timed, Tag("timed")],
        Discriminator(lambda info: "ceiling" if "ceiling" in info else "timed"),
    ]


class Skipped(_Read):
    """A candidate that was not timed."""

    family: str
    shape: str
    direction: str
    candidate: str
    reason: str


class Timings(_Read):
    """One run of ``peftmark kernels speed``."""

    datetime: str
    benchmarks: list[Benchmark]
    skipped: list[Skipped] = []
    environment: Environment
    versions: dict[str, str | None] = {}

    def ceiling(self, kind: Literal["bandwidth", "matmul"]) -> float | None:
        """Bytes/s or operations/s; None where it was not measured."""
        return max(
            (
                (one.extra_info.bytes or one.extra_info.flops) / one.stats.median
                for one in self.benchmarks
                if isinstance(one.extra_info, Ceiling) and one.extra_info.ceiling == kind
            ),
            default=None,
        )


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One candidate at one shape and direction."""

    timed: Timed
    stats: Stats
    ratio: float | None
    """The baseline's median time over this one's: above 1 is faster. None without a baseline, and for itself."""
    ratio_low: float | None
    ratio_high: float | None
    """From the quartiles of both sides' rounds that lie furthest apart."""
    share: float | None
    bound: Literal["memory", "matmul"] | None
    """Which of the two ceilings makes the least time."""


def speed_rows(timings: Timings) -> dict[str, list[SpeedRow]]:
    """The rows by family, in the file's order."""
    timed = [(one.extra_info, one.stats) for one in timings.benchmarks if isinstance(one.extra_info, Timed)]
    base = {_place(info): stats for info, stats in timed if info.candidate == BASELINE}
    rows: dict[str, list[SpeedRow]] = {}
    for info, stats in timed:
        rows.setdefault(info.family, []).append(_row(timings, info, stats, base.get(_place(info))))
    return rows


def _place(timed: Timed) -> tuple[str, ...]:
    return timed.family, timed.shape, timed.dtype, timed.direction


def _row(timings: Timings, timed: Timed, stats: Stats, base: Stats | None) -> SpeedRow:
    least: dict[Literal["memory", "matmul"], float] = {}
    if timed.bytes and (bandwidth := timings.ceiling("bandwidth")):
        least["memory"] = timed.bytes / bandwidth
    if timed.flops and (rate := timings.ceiling("matmul")):
        least["matmul"] = timed.flops / rate
    bound = max(least, key=lambda kind: least[kind], default=None)
    ratio, low, high = stats.over(base) if base and timed.candidate != BASELINE else (None, None, None)
    share = least[bound] / stats.median if bound else None
    return SpeedRow(
        timed=timed, stats=stats, share=share, bound=bound, ratio=ratio, ratio_low=low, ratio_high=high
    )  # fmt: skip


def compared(rows: Sequence[SpeedRow]) -> dict[str, SpeedRow]:
    """By candidate, a family's rows at the one place where its candidates are best compared; none where Unsloth was not
    timed beside the baseline.

    Forward and backward before forward alone, then where torch.compile was timed too, then the largest.
    """
    places: dict[tuple[str, ...], dict[str, SpeedRow]] = {}
    for row in rows:
        places.setdefault(_place(row.timed), {})[row.timed.candidate] = row
    both = [place for place in places.values() if {BASELINE, "unsloth"} <= place.keys()]

    def rank(place: dict[str, SpeedRow]) -> tuple[bool, bool, int, int]:
        timed = place[BASELINE].timed
        return "backward" in timed.direction, "compile" in place, timed.bytes, timed.flops

    return max(both, key=rank, default={})
