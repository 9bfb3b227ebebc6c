"""A fresh process that sees an overlay first, cannot outlive its time, and takes what it started with it."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.cache import kept_bytecode
from bench.executor import die_with

CHECKOUT = Path(__file__).parents[2]
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
"""What every measured process gets: no network, no statistics sent, no progress bars."""
SHOWN = 300


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """Exit code, negative for a signal; None where it ran out of time and was killed."""
    log: str
    """Standard output and error together."""

    @property
    def why(self) -> str:
        """The last line that it wrote, or how it died."""
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        last = lines[-1][:SHOWN] if lines else "no message"
        return f"killed by {signal.Signals(-self.code).name}: {last}" if self.code and self.code < 0 else last


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""For what runs in Triton's interpreter, also on a machine that has a GPU."""


def environment(paths: Sequence[Path]) -> dict[str, str]:
    """Variables of a process that finds ``paths`` first, then this checkout's packages."""
    before = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = {"PYTHONPATH": os.pathsep.join([*map(str, paths), str(CHECKOUT), *before])}
    return os.environ | QUIET | kept_bytecode() | path


def run(
    command: Sequence[str],
    paths: Sequence[Path],
    timeout_s: float,
    folder: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> Ended:
    """Run a command with ``paths`` first on its path, in ``folder`` (default: a temporary one)."""
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment(paths) | dict(settings or {}), cwd=folder or scratch,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()),
        )  # fmt: skip
        code: int | None = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return Ended(code=code, log=log.read().decode("utf-8", "replace"))
