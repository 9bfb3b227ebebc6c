"""Checks kernel families in fresh processes and gathers the outcome into one record."""

import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from bench import environment
from bench.errors import InputError, nearest
from kernels_check import child, interpreter
from kernels_check.families import FAMILIES, NO_CASE
from kernels_check.processes import child_environment, could_not_run
from kernels_check.record import Entry, KernelRecord, Unavailable, checks_sha256


def check(
    device: Literal["cpu", "cuda"], *, unsloth: Path | None = None, only: list[str] | None = None, seed: int = 0
) -> KernelRecord:
    """Run the families and return the record.

    ``unsloth`` is a folder that holds another installed copy (a folder ``unsloth`` in it). Raises InputError for an
    unknown family, a folder without Unsloth, a device that is not there, or where the processes could not start.
    """
    families = _chosen(only)
    if device == "cuda" and not environment.current().gpus:
        raise InputError("--device cuda", "NVML sees no NVIDIA GPU on this machine", "use --device cpu")
    if unsloth is not None and not (unsloth / "unsloth" / "kernels").is_dir():
        raise InputError(
            str(unsloth), "holds no unsloth/kernels", "install one: pip install --no-deps --target DIR unsloth==VERSION"
        )
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        versions = _run_processes(out, device, unsloth, families, seed)
        entries = [
            entry
            for family in families
            for part in range(child.parts(family, device))
            for entry in _read(child.file_of(out, family, part), family, seed)
        ]
    return KernelRecord(
        created=datetime.now(UTC),
        device=device,
        seed=seed,
        unsloth_copy=unsloth.resolve().name if unsloth else "installed",
        versions=versions,
        environment=environment.current(),
        checks_sha256=checks_sha256(),
        not_covered=list(interpreter.NOT_COVERED) if device == "cpu" else [],
        entries=entries,
        unavailable=[Unavailable(family=family, reason=reason) for family, reason in NO_CASE.items()],
        seconds=round(time.monotonic() - start, 2),
    )


def _chosen(only: list[str] | None) -> list[str]:
    if not only:
        return list(FAMILIES)
    for name in only:
        if name not in FAMILIES and "." not in name:
            raise InputError("--only", f"unknown family {name!r}", nearest(name, list(FAMILIES)))
    return only


def _run_processes(
    out: Path, device: str, unsloth: Path | None, families: list[str], seed: int
) -> dict[str, str | None]:
    """Run the child; versions of the packages that it saw."""
    given = str(unsloth.resolve()) if unsloth else ""
    command = [sys.executable, "-m", "kernels_check.child", str(out), device, str(seed), given, *families]
    ran = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    if ran.returncode:
        raise could_not_run("kernels check", "process", ran.stderr)
    versions: dict[str, str | None] = json.loads((out / "versions.json").read_text())
    return versions


def _read(file: Path, family: str, seed: int) -> list[Entry]:
    """The entries of one family's file; a process that died makes its running case ``crashed``."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    entries = [Entry(**line["entry"]) for line in lines if "entry" in line]
    code = next((line["ended"] for line in lines if "ended" in line), 0)
    if code:
        error = next((line["error"].strip().splitlines()[-1] for line in lines if "error" in line), None)
        how = error or f"its process ended by signal {-code}" if code < 0 else error or f"its process ended with {code}"
        starts = [line["start"] for line in lines if "start" in line]
        running = starts[-1] if len(starts) > len(entries) else {"case": "?", "dtype": "?", "candidate": "?"}
        entries.append(Entry(family=family, **running, seed=seed, status="crashed", reason=how))
    return entries
