"""The processes that kernels run in: a child that imports the heavy libraries, and forks of it that die alone."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TypeVar

from bench.cache import kept_bytecode
from bench.errors import InputError

AT_ONCE = 2
AT_ONCE_GPU = 12
"""At most; no more than there are processors. They compile kernels, and hold half a GiB of the GPU's memory each."""
TIMEOUT_S = 300.0
Job = TypeVar("Job")


def forked(
    target: Callable[[Job], None], jobs: Sequence[Job], at_once: int = AT_ONCE
) -> Iterator[tuple[Job, int, float]]:
    """Call ``target(job)`` in a process of its own for each job; yields (job, exit code, seconds) as they end.

    A process that takes longer than TIMEOUT_S is killed. Processes are forked from the calling thread, so that what
    belongs to it (torch's function modes) is theirs too.
    """
    context, waiting = multiprocessing.get_context("fork"), list(jobs)
    running: list[tuple[ForkProcess, Job, float]] = []
    while waiting or running:
        while waiting and len(running) < at_once:
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


def child_environment() -> dict[str, str]:
    """Environment variables for a child that finds this checkout's packages first."""
    paths = [str(Path(__file__).parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | kept_bytecode() | {"PYTHONPATH": os.pathsep.join(paths)}


def could_not_run(command: str, process: str, stderr: str) -> InputError:
    """What a child that ended badly means to the user; the last line that it wrote says why."""
    last = (stderr.strip().splitlines() or ["no message"])[-1]
    mend = (
        "if that names a missing package: pip install --no-deps -r requirements-kernels-cpu.txt on a CPU machine, "
        "pip install -e '.[gpu]' on one with a GPU"
    )
    return InputError(command, f"its {process} could not run: {last}", mend)
