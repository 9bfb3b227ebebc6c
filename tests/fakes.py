"""Runs of the ``fake`` backend for tests: real worker and sampler processes, scripted steps, no torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.cell import Cell
from bench.environment import Environment
from bench.executor import Setting
from bench.plan import Job
from bench.record import Status
from tests.synthetic import environment

STEPS, UNTIMED = 4, 2


def cell(model: str = "fake", **fields: Any) -> Cell:
    return Cell.model_validate(
        {"model": model, "backend": "fake", "source": "random", "max_steps": STEPS, "untimed_steps": UNTIMED} | fields
    )


def job(model: str = "fake", *, repeat: int = 0, unsupported: str | None = None, **fields: Any) -> Job:
    return Job(cell(model, **fields), repeat, unsupported)


def setting(base: Path, *, timeout_s: float = 60.0, machine: Environment | None = None) -> Setting:
    return Setting(
        suite="fakes", base=base, timeout_s=timeout_s, offline=True, environment=machine or environment(gpu=None),
        device_index=None,
    )  # fmt: skip


def suite(folder: Path, axes: str = "", *, name: str = "fakes", steps: int = STEPS, more: str = "") -> Path:
    """A suite file of fake cells; ``axes`` and ``more`` are YAML."""
    path = folder / f"{name}.yaml"
    recipe = f"{{model: fake, backend: fake, source: random, max_steps: {steps}, untimed_steps: {UNTIMED}}}"
    path.write_text(f"name: {name}\nrecipe: {recipe}\naxes: {{{axes}}}\n{more}\n")
    return path


class Listener:
    """A progress that calls ``on_phase`` when a phase is first heard of, and keeps the statuses."""

    def __init__(self, on_phase: Callable[[Job, str], None] = lambda job, phase: None) -> None:
        self.on_phase, self.statuses = on_phase, list[Status]()
        self._heard: set[tuple[int, str]] = set()

    def start(self, jobs: Sequence[Job], done_already: int) -> None: ...

    def job_started(self, job: Job, index: int) -> None:
        self.job, self.index = job, index

    def event(self, **news: Any) -> None:
        if (phase := news.get("phase")) and (self.index, phase) not in self._heard:
            self._heard.add((self.index, phase))
            self.on_phase(self.job, phase)

    def job_finished(self, job: Job, status: Status, message: str | None, wall_s: float | None) -> None:
        self.statuses.append(status)

    def stop(self) -> None: ...


def start(*args: str | Path, cwd: Path, **variables: str) -> "subprocess.Popen[str]":
    """``python -m bench ARGS`` in ``cwd``; it heeds Ctrl-C even where this process was started to ignore it."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *map(str, args)], cwd=cwd, text=True, env=os.environ | variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def processes_of(folder: Path) -> list[str]:
    """Command lines of the workers and samplers that work below ``folder``."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if "bench." in line and str(folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


def wait_for(what: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """The first true value of ``what()``; fails when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.03)
    raise AssertionError(f"not seen within {timeout_s} s")
