"""The worker's journal: one JSON object a line, appended as things happen, so that a killed worker leaves what it knew.

Every line has ``t_s`` (seconds of the monotonic clock since the parent started the worker) and ``event``:
``phase`` (begins), ``peaks`` (a phase ended, with torch's peaks), ``step``, ``fact`` (a part of the record),
``missing`` (a meter that failed, and why), ``failed``, ``done``. The parent builds the record from this file alone; see
``bench.assemble``.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.meters.torch_memory import peaks_bytes, reset_peaks
from bench.record import PhaseName


class Journal:
    """Appends events to a file; ``started`` is the parent's ``time.monotonic()`` when it started this process."""

    def __init__(self, path: Path, started: float) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._started = started

    def now_s(self) -> float:
        """Seconds since the process was started."""
        return time.monotonic() - self._started

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; NaN and infinity are written as null."""
        t_s = fields.pop("t_s", None)
        line = {"t_s": self.now_s() if t_s is None else t_s, "event": event} | fields
        self._file.write(json.dumps(_finite(line)) + "\n")

    def fact(self, name: str, value: BaseModel | list[Any]) -> None:
        """A part of the record, under the record's own field name."""
        plain = [v.model_dump() for v in value] if isinstance(value, list) else value.model_dump()
        self.write("fact", name=name, value=plain)

    def begin(self, name: PhaseName, *, t_s: float | None = None) -> None:
        """A phase begins; torch's peak counters start anew."""
        reset_peaks()
        self.write("phase", name=name, t_s=t_s)

    def end(self, name: PhaseName) -> None:
        """A phase ends; its torch peaks are written beside its end."""
        self.write("peaks", name=name, **peaks_bytes())

    @contextmanager
    def phase(self, name: PhaseName, *, t_s: float | None = None) -> Iterator[None]:
        """``begin`` and ``end`` around a block; the peaks are written also when the block fails."""
        self.begin(name, t_s=t_s)
        try:
            yield
        finally:
            self.end(name)


def read(path: Path) -> list[dict[str, Any]]:
    """All complete events of a journal; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
