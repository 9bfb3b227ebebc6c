"""Runs a plan's jobs, one fresh process each, on one GPU of this machine (or on its CPU).

The parent stays light: it never imports torch, follows the worker through its journal, and makes the record from that
journal and the sampler's timeline. It survives what the worker does not; when it dies itself, its children die too.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from bench import assemble, events
from bench.cache import kept_bytecode
from bench.cell import Cell
from bench.environment import Environment
from bench.errors import InputError, PeftmarkError
from bench.meters.sampler import GpuReader
from bench.plan import Job
from bench.progress import Progress
from bench.record import Record, Status
from bench.store import Store, disk_errors, new_id

SAMPLER_HZ = 125.0
POLL_S = 0.2
GRACE_S = 10.0
SETTLE_S = 10.0
"""How long a cell waits for the GPU to be empty: a killed process's memory may take seconds to come back."""
KEEP = ("ok", "oom", "diverged", "unsupported")
"""Statuses that a second run does not try again: the same cell would end the same way."""
BAD = ("crashed", "timeout", "diverged", "contaminated")
"""Statuses that call for a look; out of memory and unsupported are results."""


@dataclass(frozen=True)
class Setting:
    """What a run's jobs have in common."""

    suite: str
    base: Path
    timeout_s: float
    offline: bool
    environment: Environment
    device_index: int | None


def device_index(machine: Environment, asked: int | None, visible: str) -> int | None:
    """NVML's index of the GPU to use: the one asked for, else the first visible one; None without a GPU."""
    if asked is not None and not 0 <= asked < len(machine.gpus):
        raise InputError(
            "--gpu", f"there is no GPU {asked} here; NVML sees {len(machine.gpus)}", "run `peftmark doctor`"
        )
    if not machine.gpus:
        return None
    first = visible.split(",")[0]
    return asked if asked is not None else int(first) if first.isdigit() else 0


def is_done(job: Job, records: list[Record], environment: Environment) -> bool:
    """Whether a record of the same cell and repeat, from the same environment, need not be made again."""
    return any(r.status in KEEP and is_of(r, job, environment) for r in records)


def is_of(record: Record, job: Job, environment: Environment) -> bool:
    """Whether the record is one of that job in that environment, however it ended."""
    same = record.cell_digest == job.cell.digest and record.repeat == job.repeat
    return same and record.environment.fingerprint == environment.fingerprint


def run(
    jobs: list[Job], setting: Setting, store: Store, progress: Progress, *, fail_fast: bool = False
) -> list[Record]:
    """Run jobs in order and store a record of each, those that cannot run here included.

    ``fail_fast`` stops after the first record whose status is in ``BAD``.

    Ctrl-C and SIGTERM stop the running cell, leave no record of it, and raise KeyboardInterrupt.
    """
    made = []
    with _signals_raise():
        for index, job in enumerate(jobs):
            progress.job_started(job, index)
            id = new_id(job.cell)
            workspace = store.workspace(id)
            try:
                record = _record_of(job, id, workspace, setting, progress)
            except BaseException:
                store.discard(workspace)
                raise
            store.add(record, workspace)
            made.append(record)
            progress.job_finished(job, record.status, record.message, record.wall_s)
            if fail_fast and record.status in BAD:
                break
    return made


def prepare(cells: list[Cell], setting: Setting) -> list[dict[str, str]]:
    """Make models and data ready in a process of their own, so that no cell pays for it; returns what is there.

    Raises PeftmarkError with the reason when something cannot be had.
    """
    request = json.dumps({
        "cells": [c.model_dump(mode="json") for c in cells], "base": str(setting.base), "offline": setting.offline,
    })  # fmt: skip
    command, pipes = [sys.executable, "-m", "bench.prepare"], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with _signals_raise(), _child(command, env=_worker_env(setting), text=True, **pipes) as process:
        out, _ = process.communicate(request)
    answer: dict[str, Any] = (
        json.loads(out.strip().splitlines()[-1]) if out.strip() else {"error": "preparation died without a word"}
    )
    if "error" in answer:
        raise PeftmarkError(answer["error"])
    ready: list[dict[str, str]] = answer["ready"]
    return ready


def _record_of(job: Job, id: str, workspace: Path, setting: Setting, progress: Progress) -> Record:
    common: dict[str, Any] = {
        "id": id, "suite": setting.suite, "cell": job.cell, "repeat": job.repeat,
        "environment": setting.environment, "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device_index": setting.device_index,
    }  # fmt: skip
    if job.unsupported:
        return assemble.record(**common, ended=("unsupported", job.unsupported))
    before = _others_on_gpu(setting.device_index)
    started = time.monotonic()
    with disk_errors(workspace):
        ended = _run_worker(job.cell, workspace, started, setting, progress)
    wall_s = time.monotonic() - started
    return assemble.record(
        **common, folder=workspace, wall_s=wall_s, ended=ended, requested_hz=SAMPLER_HZ, other_processes_before=before
    )


def _others_on_gpu(index: int | None) -> int | None:
    """Compute processes on the GPU before a cell starts; None where NVML cannot tell.

    Waits up to ``SETTLE_S`` for none to be there, so that what is left of the cell before, which was killed with its
    whole group, is not held against this one.
    """
    gpu, deadline = GpuReader(index, os.getpid()), time.monotonic() + SETTLE_S
    while (others := gpu.memory()[2]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return others


def _run_worker(
    cell: Cell, workspace: Path, started: float, setting: Setting, progress: Progress
) -> tuple[Status, str] | None:
    """Run the worker with the sampler beside it; how it ended if not by its own word in the journal."""
    job_file = workspace / "job.json"
    job_file.write_text(json.dumps({
        "cell": cell.model_dump(mode="json"), "folder": str(workspace), "base": str(setting.base),
        "started": started,
    }))  # fmt: skip
    gpu = [] if setting.device_index is None else ["--gpu", str(setting.device_index)]
    with (workspace / "worker.log").open("wb") as log:
        command = [sys.executable, "-m", "bench.worker", str(job_file)]
        with _child(command, env=_worker_env(setting), stdout=log, stderr=log) as worker:
            sampler_command = [
                sys.executable, "-m", "bench.meters.sampler", "--pid", str(worker.pid), "--hz", str(SAMPLER_HZ),
                "--started", repr(started), "--out", str(workspace / assemble.TIMELINE), *gpu,
            ]  # fmt: skip
            with _child(sampler_command, stdout=log, stderr=log) as sampler:
                ended = _follow(worker, cell, workspace, started + setting.timeout_s, progress)
                _end(worker)
                sampler.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):  # then its columns stay missing
                    sampler.wait(GRACE_S)
    job_file.unlink()
    shutil.rmtree(workspace / "trainer", ignore_errors=True)  # Trainer's output_dir: nothing is saved there
    return ended


def _follow(
    worker: "subprocess.Popen[Any]", cell: Cell, workspace: Path, deadline: float, progress: Progress
) -> tuple[Status, str] | None:
    journal = workspace / assemble.JOURNAL
    seen_bytes = 0
    while True:
        try:
            code = worker.wait(POLL_S)
            break
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                return "timeout", "the cell ran past the suite's timeout_s"
        size = journal.stat().st_size if journal.exists() else 0
        if size != seen_bytes:
            seen_bytes = size
            _show(events.read(journal), cell, progress)
    last = (events.read(journal) or [{}])[-1].get("event")
    if last in ("done", "failed"):
        return None
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    hint = "; was it out of host memory?" if code == -signal.SIGKILL else ""
    return "crashed", f"the worker was {how}{hint}" if code < 0 else f"the worker {how}"


def _show(journal: list[dict[str, Any]], cell: Cell, progress: Progress) -> None:
    phases = [e["name"] for e in journal if e["event"] == "phase"]
    steps = [e for e in journal if e["event"] == "step"]
    peaks = [e["torch_reserved_peak_bytes"] for e in journal if e.get("torch_reserved_peak_bytes")]
    rate = steps[-1]["real_tokens"] / steps[-1]["wall_s"] if steps and steps[-1]["wall_s"] else None
    progress.event(
        phase=phases[-1] if phases else None, step=len(steps), max_steps=cell.max_steps, tokens_per_s=rate,
        vram_bytes=max(peaks, default=None),
    )  # fmt: skip


def _worker_env(setting: Setting) -> dict[str, str]:
    """The parent's variables and those every worker gets, whatever its backend."""
    env = os.environ | {"TOKENIZERS_PARALLELISM": "false", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TQDM_DISABLE": "1"}
    env |= kept_bytecode()
    if setting.device_index is not None:
        env["CUDA_VISIBLE_DEVICES"] = str(setting.device_index)
    if setting.offline:
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return env


def die_with(parent: int) -> None:
    """For a child, before it runs its command: be killed when the process ``parent`` ends, however it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, Linux only
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def _child(command: list[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """A process in its own group that cannot outlive the block or this process."""
    process = subprocess.Popen(
        command, start_new_session=True, preexec_fn=partial(die_with, os.getpid()), **options
    )  # fmt: skip
    try:
        yield process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[Any]") -> None:
    """Kill what is left of the process's group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
