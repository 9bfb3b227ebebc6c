"""The worker: what an exception means, and what its journal says, without a parent beside it."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import events
from bench.backends.fake import OutOfMemoryError
from bench.errors import AuditError, Diverged, InputError, Unsupported
from bench.worker import classify
from tests import fakes


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def during(error: BaseException, other: BaseException) -> BaseException:
    error.__context__ = other
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unsupported("no GPU"), "unsupported"),
        (Diverged("nan"), "diverged"),
        (OutOfMemoryError("x"), "oom"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "oom"),
        (MemoryError(), "oom"),
        (caused(ValueError("load failed"), OutOfMemoryError("x")), "oom"),
        (during(KeyError("clean-up"), caused(ValueError("y"), MemoryError())), "oom"),
        (RuntimeError("shape mismatch"), "crashed"),
        (AuditError("asked for nf4, got bf16"), "crashed"),
        (InputError("s.yaml", "wrong"), "crashed"),
        (KeyboardInterrupt(), "crashed"),
        (SystemExit(3), "crashed"),
    ],
    ids=repr,
)
def test_what_an_exception_means(error: BaseException, status: str) -> None:
    assert classify(error) == status


def work(folder: Path, cell: dict[str, Any]) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, journal and standard error of a worker."""
    job = folder / "job.json"
    job.write_text(json.dumps({
        "cell": cell, "folder": str(folder), "base": str(folder), "started": time.monotonic(),
    }))  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "bench.worker", str(job)], capture_output=True, text=True)
    return done.returncode, events.read(folder / "journal.jsonl"), done.stderr


def test_a_good_cell_ends_with_done(tmp_path: Path) -> None:
    code, journal, stderr = work(tmp_path, fakes.cell().model_dump(mode="json"))
    assert (code, stderr) == (0, "")
    assert journal[-1]["event"] == "done"
    assert [e["name"] for e in journal if e["event"] == "phase"] == ["import", "load", "warmup", "steady"]
    assert [e["name"] for e in journal if e["event"] == "peaks"] == ["import", "load", "warmup", "steady"]
    assert [e["step"] for e in journal if e["event"] == "step"] == [1, 2, 3, 4]
    times = [e["t_s"] for e in journal]
    assert times == sorted(times) and times[0] == 0.0, "the import phase starts with the process"


def test_a_failure_is_said_in_the_journal_with_its_traceback_in_the_log(tmp_path: Path) -> None:
    code, journal, stderr = work(tmp_path, fakes.cell("fake-crash").model_dump(mode="json"))
    assert code == 1
    assert (journal[-1]["event"], journal[-1]["status"]) == ("failed", "crashed")
    assert journal[-1]["message"] == "ValueError: scripted crash"
    assert "Traceback" in stderr and "scripted crash" in stderr


def test_an_error_of_our_own_is_told_without_its_class(tmp_path: Path) -> None:
    _, journal, _ = work(tmp_path, fakes.cell("fake-audit").model_dump(mode="json"))
    assert journal[-1]["message"].startswith("audit: base_precision")


def test_an_unknown_backend_is_told_with_the_nearest(tmp_path: Path) -> None:
    code, journal, _ = work(tmp_path, fakes.cell(backend="fakes").model_dump(mode="json"))
    assert code == 1 and journal[-1]["status"] == "crashed"
    assert "did you mean 'fake'?" in journal[-1]["message"]


def test_the_worker_of_a_fake_cell_loads_no_torch(tmp_path: Path) -> None:
    code = "import sys, bench.worker, bench.executor; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
