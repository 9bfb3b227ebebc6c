"""CUDA events as pytest-benchmark's timer, and inputs that are never in the L2 cache.

A round: the GPU is kept busy with a spin, so that the CPU can queue the whole call behind it; the timer's first reading
records an event behind the spin, the second one records another behind the call and waits for it. What is timed is the
GPU's work with the gaps between kernels, without the wait for the CPU. Where the spin was over before the call had been
queued, the round includes waiting: it counts as CPU-bound. The spin grows during the warm-up rounds until it suffices
or reaches ``MOST_CYCLES``.
"""

from collections.abc import Callable
from typing import Any, Protocol

from kernels_check.case import Inputs

ROUNDS = 25
WARM_UP = 5
FEWEST_COPIES = 2
CYCLES = 2_000_000
"""About 1 ms of an H100's clock."""
MOST_CYCLES = 32 * CYCLES


class Event(Protocol):
    """What is used of torch.cuda.Event."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end_event: Any) -> float: ...


class EventTimer:
    """A timer for pytest-benchmark. Its readings only mean something in pairs: start, end."""

    def __init__(self, make_event: Callable[[], Event], spin: Callable[[int], None]) -> None:
        self._make_event, self._spin = make_event, spin
        self._start: Event | None = None
        self._now_s = 0.0
        self.begin()

    def begin(self) -> None:
        """Before the first warm-up round of a benchmark."""
        self._start = None
        self.cycles = CYCLES
        self.cpu_bound: list[bool] = []

    def prepare(self) -> None:
        """Before each round: keep the GPU busy."""
        self._start = None
        self._spin(self.cycles)

    def cuda_events(self) -> float:
        """The timer: seconds. The difference of a pair is the time between two fresh events: an event's times are
        float32 milliseconds, too coarse far from their origin."""
        if self._start is None:
            self._start = self._make_event()
            self._start.record()
            return self._now_s
        bound, end = self._start.query(), self._make_event()
        end.record()
        end.synchronize()
        self._now_s += self._start.elapsed_time(end) / 1000
        self._start = None
        if bound and len(self.cpu_bound) < WARM_UP:
            self.cycles = min(2 * self.cycles, MOST_CYCLES)
        self.cpu_bound.append(bound)
        return self._now_s

    @property
    def cpu_bound_share(self) -> float:
        """Share of the measured rounds in which the GPU waited for the CPU."""
        measured = self.cpu_bound[WARM_UP:]
        return sum(measured) / len(measured) if measured else 0.0


def copies_needed(set_bytes: int, l2_bytes: int) -> int:
    """Sets of inputs that together exceed three times the L2 cache."""
    return max(FEWEST_COPIES, 3 * l2_bytes // set_bytes + 1)


class Rotation:
    """Sets of inputs with the same values, taken in turn. What a call overwrote is restored from ``pristine`` while
    another set is in use, so that it is not in the cache when its turn comes again."""

    def __init__(self, sets: list[Inputs], overwritten: tuple[str, ...]) -> None:
        self.sets = sets
        self._pristine = {name: sets[0][name].detach().clone() for name in overwritten}
        self._last: Inputs | None = None
        self._round = 0

    def next(self) -> Inputs:
        """The next round's set."""
        import torch

        if self._last is not None:
            with torch.no_grad():
                for name, value in self._pristine.items():
                    self._last[name].copy_(value)
        self._last = self.sets[self._round % len(self.sets)]
        self._round += 1
        return self._last
