"""The live view of a run, for a terminal: drawn twice a second by rich from the state that ``RunState`` keeps."""

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bench.plan import Job
from bench.progress import Running, RunState, one_line, span
from bench.record import Status

LIVE_HZ = 2.0
LIVE_FRAME_ROWS = 9
"""Rows of the live view around the table's body: table head and rules, caption, running job, totals."""
COLOURS = {"ok": "green", "unsupported": "yellow", "interrupted": "yellow", "running": "cyan", "pending": "dim"}


class LiveProgress(RunState):
    """The matrix as a table that stays in place, the running job's line under it, and the time to go."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock=clock)
        self.console = console
        self.live = Live(console=console, get_renderable=self.view, refresh_per_second=LIVE_HZ)

    def start(self, jobs: Sequence[Job], done_already: int) -> None:
        """See ``Progress``."""
        super().start(jobs, done_already)
        self.live.start()

    def _stop(self) -> None:
        self.live.stop()
        self.console.print(self.summary(), highlight=False)

    def view(self) -> RenderableType:
        """The whole view, cut to the terminal's height around the job that runs or ran last."""
        finished, running = self.finished, self.running  # of one moment: this runs in rich's thread
        now = running.index if running else max(finished, default=0)
        room = max(self.console.size.height - LIVE_FRAME_ROWS, 1)
        first = max(0, min(now - room // 2, len(self.jobs) - room))
        shown = range(first, min(first + room, len(self.jobs)))

        table = Table(expand=True, pad_edge=False)
        table.add_column("#", justify="right", no_wrap=True)
        table.add_column("run", no_wrap=True, ratio=3)
        table.add_column("state", no_wrap=True)
        table.add_column("", no_wrap=True, ratio=2)
        for i in shown:
            state, detail = self._state(i, finished, running)
            colour = COLOURS.get(state, "red")
            table.add_row(str(i + 1), escape(self.jobs[i].label), f"[{colour}]{state}[/]", escape(detail))
        hidden = f"{first} above and {len(self.jobs) - shown.stop} below are not shown"
        table.caption = hidden if len(shown) < len(self.jobs) else None
        line = f"{running.job.label}: {running.line}" if running else "between runs"
        return Group(table, Text(line, no_wrap=True, overflow="ellipsis"), Text(self._totals(), no_wrap=True))

    def _state(
        self, i: int, finished: dict[int, tuple[Job, Status, str | None, float | None]], running: Running | None
    ) -> tuple[str, str]:
        if i in finished:
            _, status, message, wall_s = finished[i]
            return status, one_line(message or "") or ("" if wall_s is None else span(wall_s))
        if running and i == running.index:
            return "running", running.phase or ""
        return "pending", self.jobs[i].unsupported or ""

    def _totals(self) -> str:
        eta = "unknown" if self.eta_s is None else f"about {span(self.eta_s)}"
        ended = ", ".join(f"{count} {status}" for status, count in self.counts().most_common()) or "0 ended"
        before = f", {self.done_already} done before" if self.done_already else ""
        spent = span(self.clock() - self.started_s)
        return f"{ended}{before}, {self.left} to do of {len(self.jobs)}; {spent} so far, to go: {eta}"
