"""Progress of a run: a live view of the matrix, plain lines, JSON lines, or only the summary.

The executor reports to one ``Progress``; positions are those of the jobs that it was given to run, from 0. The live
view is drawn twice a second by rich; nothing here polls or waits.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TextIO, TypedDict, Unpack

from rich.console import Console

from bench.plan import Job
from bench.record import Status

Mode = Literal["auto", "quiet", "plain", "json"]

GIB = 2**30
PLAIN_EVERY_S = 15.0
"""Shortest time between two plain lines of one phase."""


class News(TypedDict, total=False):
    """What may be told of the running job; None says nothing."""

    phase: str | None
    step: int | None
    max_steps: int | None
    tokens_per_s: float | None
    vram_bytes: int | None


class Progress(Protocol):
    """What the executor tells."""

    def start(self, jobs: Sequence[Job], done_already: int) -> None:
        """A run of ``jobs`` begins; ``done_already`` others of the plan are in the store and not run again."""

    def job_started(self, job: Job, index: int) -> None:
        """The job at position ``index`` of the plan starts."""

    def event(self, **news: Unpack[News]) -> None:
        """News of the running job; what is not given stays as it was, and a new phase forgets the step."""

    def job_finished(self, job: Job, status: Status, message: str | None, wall_s: float | None) -> None:
        """The running job ended."""

    def stop(self) -> None:
        """The run is over, complete or not; a second call does nothing."""


def make(mode: Mode, *, stream: TextIO | None = None) -> Progress:
    """The progress for ``mode``, on ``stream`` or standard output; auto is live on a terminal, plain elsewhere."""
    stream = stream or sys.stdout
    if mode == "json":
        return JsonProgress(stream)
    if mode == "quiet":
        return QuietProgress(stream)
    console = Console(file=stream)
    if mode == "auto" and console.is_terminal and not console.is_dumb_terminal:
        from bench.progress_live import LiveProgress

        return LiveProgress(console)
    return PlainProgress(stream)


@dataclass
class Running:
    """The running job as last heard of."""

    job: Job
    index: int
    phase: str | None = None
    step: int | None = None
    max_steps: int | None = None
    tokens_per_s: float | None = None
    vram_bytes: int | None = None

    @property
    def line(self) -> str:
        """Phase, step and tokens/s while it trains, and VRAM, as far as they are known."""
        trains = self.phase in ("warmup", "steady")
        step = f"step {self.step}" + (f"/{self.max_steps}" if self.max_steps else "")
        parts = [
            self.phase or "starting",
            step if trains and self.step is not None else None,
            f"{self.tokens_per_s:,.0f} tokens/s" if trains and self.tokens_per_s is not None else None,
            None if self.vram_bytes is None else f"{self.vram_bytes / GIB:.2f} GiB VRAM",
        ]
        return ", ".join(part for part in parts if part)


class RunState:
    """Keeps the state of the run; subclasses show it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.jobs: list[Job] = []
        self.done_already = 0
        self.running: Running | None = None
        self.finished: dict[int, tuple[Job, Status, str | None, float | None]] = {}
        self.started_s = clock()
        self.stopped = False

    def start(self, jobs: Sequence[Job], done_already: int) -> None:
        """See ``Progress``."""
        self.jobs, self.done_already, self.started_s = list(jobs), done_already, self.clock()

    def job_started(self, job: Job, index: int) -> None:
        """See ``Progress``."""
        self.running = Running(job, index)

    def event(self, **news: Unpack[News]) -> None:
        """See ``Progress``."""
        if self.running is None:
            return
        if news.get("phase") not in (None, self.running.phase):
            self.running.step = self.running.tokens_per_s = None
        for name, value in news.items():
            if value is not None:
                setattr(self.running, name, value)

    def job_finished(self, job: Job, status: Status, message: str | None, wall_s: float | None) -> None:
        """See ``Progress``."""
        index = self.running.index if self.running else len(self.finished)
        self.finished = {**self.finished, index: (job, status, message, wall_s)}  # never changed while a view reads it
        self.running = None

    def stop(self) -> None:
        """See ``Progress``."""
        if not self.stopped:
            self.stopped = True
            self._stop()

    def _stop(self) -> None:
        raise NotImplementedError

    @property
    def left(self) -> int:
        """Jobs not finished; the running one counts."""
        return len(self.jobs) - len(self.finished)

    @property
    def eta_s(self) -> float | None:
        """Seconds to go, by the mean wall-clock of the finished jobs; None before the first.

        Unsupported jobs cost nothing and are left out of the mean.
        """
        walls_s = [w for _, status, _, w in self.finished.values() if status != "unsupported" and w is not None]
        to_run = sum(not job.unsupported for i, job in enumerate(self.jobs) if i not in self.finished)
        return to_run * sum(walls_s) / len(walls_s) if walls_s else None

    def counts(self) -> Counter[str]:
        """How many finished jobs ended in each status."""
        return Counter(status for _, status, _, _ in self.finished.values())

    def summary(self) -> str:
        """The run in one line."""
        told = ", ".join(f"{count} {status}" for status, count in self.counts().most_common()) or "nothing ran"
        before = f", {self.done_already} done before" if self.done_already else ""
        left = f", {self.left} not run" if self.left > 0 else ""
        return f"{told}{before}{left}; {span(self.clock() - self.started_s)}"


class QuietProgress(RunState):
    """Nothing but the summary at the end."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock=clock)
        self.stream = stream

    def _stop(self) -> None:
        print(self.summary(), file=self.stream, flush=True)


class PlainProgress(QuietProgress):
    """A line when a job starts, when its phase changes, now and then while it trains, and when it ends."""

    def start(self, jobs: Sequence[Job], done_already: int) -> None:
        """See ``Progress``."""
        super().start(jobs, done_already)
        self._said_s = self.clock()
        self._say(f"{len(jobs)} runs to make, {done_already} done before")

    def job_started(self, job: Job, index: int) -> None:
        """See ``Progress``."""
        super().job_started(job, index)
        self._say(f"[{index + 1}/{len(self.jobs)}] {job.label}: started")

    def event(self, **news: Unpack[News]) -> None:
        """See ``Progress``."""
        before = self.running.phase if self.running else None
        super().event(**news)
        if self.running and (self.running.phase != before or self.clock() - self._said_s >= PLAIN_EVERY_S):
            self._say(f"[{self.running.index + 1}/{len(self.jobs)}] {self.running.line}")

    def job_finished(self, job: Job, status: Status, message: str | None, wall_s: float | None) -> None:
        """See ``Progress``."""
        position = self.running.index + 1 if self.running else "?"
        super().job_finished(job, status, message, wall_s)
        eta = "" if self.eta_s is None or self.left <= 0 else f"; about {span(self.eta_s)} to go"
        after = "" if wall_s is None else f" after {span(wall_s)}"
        why = f": {one_line(message)}" if message else ""
        self._say(f"[{position}/{len(self.jobs)}] {job.label}: {status}{after}{why}{eta}")

    def _say(self, line: str) -> None:
        self._said_s = self.clock()
        print(line, file=self.stream, flush=True)


class JsonProgress(RunState):
    """One JSON object a line; every one has ``event`` and ``elapsed_s``."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock=clock)
        self.stream = stream

    def start(self, jobs: Sequence[Job], done_already: int) -> None:
        """See ``Progress``."""
        super().start(jobs, done_already)
        self._say("start", jobs=len(jobs), done_already=done_already)

    def job_started(self, job: Job, index: int) -> None:
        """See ``Progress``."""
        super().job_started(job, index)
        self._say("job_started", index=index, cell_digest=job.cell.digest, repeat=job.repeat, label=job.label)

    def event(self, **news: Unpack[News]) -> None:
        """See ``Progress``."""
        super().event(**news)
        self._say("event", **{name: value for name, value in news.items() if value is not None})

    def job_finished(self, job: Job, status: Status, message: str | None, wall_s: float | None) -> None:
        """See ``Progress``."""
        index = self.running.index if self.running else None
        super().job_finished(job, status, message, wall_s)
        self._say(
            "job_finished", index=index, cell_digest=job.cell.digest, repeat=job.repeat, status=status,
            message=message, wall_s=wall_s, eta_s=self.eta_s,
        )  # fmt: skip

    def _stop(self) -> None:
        self._say("end", counts=dict(self.counts()), done_already=self.done_already, not_run=self.left)

    def _say(self, event: str, **fields: object) -> None:
        line = {"event": event, "elapsed_s": round(self.clock() - self.started_s, 3)} | fields
        print(json.dumps(line), file=self.stream, flush=True)


def span(seconds: float) -> str:
    """A duration to read: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def one_line(message: str) -> str:
    return " ".join(message.split())
