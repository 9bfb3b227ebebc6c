"""Runs jobs in forked processes, two at a time: each starts from what this process has imported, and dies alone."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from typing import TypeVar

AT_ONCE = 2
TIMEOUT_S = 300.0
Job = TypeVar("Job")


def forked(target: Callable[[Job], None], jobs: Sequence[Job]) -> Iterator[tuple[Job, int, float]]:
    """Call ``target(job)`` in a process of its own for each job; yields (job, exit code, seconds) as they end.

    A process that takes longer than TIMEOUT_S is killed. Processes are forked from the calling thread, so that what
    belongs to it (torch's function modes) is theirs too.
    """
    context, waiting = multiprocessing.get_context("fork"), list(jobs)
    running: list[tuple[ForkProcess, Job, float]] = []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            job = waiting.pop(0)
            process = context.Process(target=target, args=(job,))
            process.start()
            running.append((process, job, time.monotonic()))
        wait([process.sentinel for process, _, _ in running], timeout=1.0)
        for item in list(running):
            process, job, started = item
            seconds = time.monotonic() - started
            if seconds > TIMEOUT_S:
                process.kill()
                process.join()
            if process.exitcode is not None:
                running.remove(item)
                yield job, process.exitcode, round(seconds, 2)
