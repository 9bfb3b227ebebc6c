"""Runs the benchmarks in a process of their own and reads pytest-benchmark's file."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from bench import environment
from bench.errors import InputError, nearest
from kernels_check.page.timings import Timings
from kernels_check.processes import child_environment
from kernels_check.speed.operations import FAMILIES

WHERE = "kernels speed"
STDERR = 2
"""pytest's progress goes where it does not mix with the table."""
OPTIONS = ("--benchmark-disable-gc", "--durations=10", "-rs", "-p", "no:cacheprovider")


def measure(
    out: Path, *, only: list[str] | None = None, quick: bool = False, limit_s: float
) -> tuple[Timings, str | None]:
    """Time the families and write ``out``; returns what it holds, and how the process ended if not well: then the
    families after the last one written are missing.

    Benchmarks that would start later than ``limit_s`` are left out and listed as such. Raises InputError for an unknown
    family, without a GPU or pytest-benchmark, or where nothing could be timed.
    """
    for name in only or []:
        if name not in FAMILIES:
            raise InputError("--only", f"unknown family {name!r}", nearest(name, list(FAMILIES)))
    if not environment.current().gpus:
        raise InputError(WHERE, "NVML sees no NVIDIA GPU on this machine", "speed is measured on a GPU alone")
    for module, package in (("pytest", "pytest"), ("pytest_benchmark", "pytest-benchmark")):
        if not importlib.util.find_spec(module):
            raise InputError(WHERE, f"{package} is not installed", "pip install pytest pytest-benchmark")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    chosen = [f"--family={name}" for name in only or []] + (["--middle"] if quick else [])
    file = Path(__file__).parent / "bench_kernels.py"
    command = [sys.executable, "-m", "pytest", str(file), f"--json-file={out.resolve()}", f"--limit-s={limit_s}"]
    ran = subprocess.run([*command, *OPTIONS, *chosen], env=child_environment(), stdout=STDERR)
    if not out.is_file():
        said = f"nothing was timed; the benchmarks' process ended with {ran.returncode}"
        raise InputError(WHERE, said, "its output, above, says why")
    timings = Timings.model_validate(json.loads(out.read_text("utf-8")))
    return timings, f"the benchmarks' process ended with {ran.returncode}" if ran.returncode else None
