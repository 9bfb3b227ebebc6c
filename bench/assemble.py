"""From a worker's journal and the sampler's timeline to a Record: the only place where records are made."""

import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench import events, health
from bench.cache import cache_dir, sha256_file
from bench.cell import Cell
from bench.environment import Environment
from bench.record import (
    AdapterFacts,
    FileRef,
    Phase,
    PhaseName,
    Record,
    Status,
    Steps,
    Timeline,
    TrainerReport,
    files_of,
)

TIMELINE = "timeline.parquet"
JOURNAL = "journal.jsonl"
_SAMPLED = {
    "nvml_process_bytes": "nvml_process_peak_bytes",
    "nvml_device_bytes": "nvml_device_peak_bytes",
    "host_rss_bytes": "host_rss_peak_bytes",
}
METERS = ("probe", "fingerprint")
"""Facts that a good run may lack: one that is no good is dropped. Any other such fact makes the run crashed."""


def record(
    *,
    id: str,
    suite: str,
    cell: Cell,
    repeat: int,
    environment: Environment,
    started_at: str,
    device_index: int | None = None,
    other_processes_before: int | None = None,
    folder: Path | None = None,
    wall_s: float | None = None,
    ended: tuple[Status, str] | None = None,
    requested_hz: float = 0.0,
) -> Record:
    """The record of one run.

    ``folder`` holds the journal and the timeline; None for a cell that never started. ``ended`` is how the parent saw
    it end (timeout, killed, unsupported); without it the journal's own word counts. ``other_processes_before`` is the
    executor's look at the GPU. A fact that is not valid, or names a file that is not the one it names, is left out and
    said in the message, as is a meter that failed: nothing in a journal can keep the record from being made.
    """
    journal = events.read(folder / JOURNAL) if folder else []
    rows = _timeline_rows(folder / TIMELINE) if folder else {}
    phases = _phases(journal, rows, wall_s)
    status, message, failed_phase = _outcome(journal, ended, phases)
    facts, faults = _facts(journal, folder)
    unmeasured = [f"{e['name']}: not measured: {e['message']}" for e in journal if e["event"] == "missing"]
    messages = [message, *faults.values(), *unmeasured]
    if status == "ok" and (broken := [name for name in faults if name not in METERS]):
        status, failed_phase = "crashed", _phase_of(broken[0], journal)
    timeline = condition = None
    if folder and rows:
        others = [n for n in rows["other_processes"] if n is not None]
        timeline = Timeline(
            file=FileRef.of(folder / TIMELINE, folder), rows=len(rows["t_s"]), requested_hz=requested_hz,
            other_gpu_processes=max(others, default=0),
        )  # fmt: skip
    if folder and device_index is not None:
        steady = next((p for p in phases if p.name == "steady"), None)
        condition = health.judge(rows, steady, other_processes_before=other_processes_before)
        if status == "ok" and condition.reasons:
            status = "contaminated"
            messages += condition.reasons
    told = "\n".join(scrub(text) for text in messages if text)
    return Record.model_validate(
        {"adapter": AdapterFacts(), "trainer": TrainerReport()}
        | facts
        | {
            "id": id, "suite": suite, "cell_digest": cell.digest, "cell": cell, "repeat": repeat, "status": status,
            "failed_phase": failed_phase, "message": told or None,
            "started_at": started_at, "wall_s": wall_s, "environment": environment, "device_index": device_index,
            "phases": phases, "timeline": timeline, "health": condition,
        }
    )  # fmt: skip


def scrub(text: str) -> str:
    """Text without this machine's folders, since records are published; lone surrogates, which are no JSON, as '?'."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    for folder, name in ((cache_dir(), "CACHE"), (Path.cwd(), "."), (Path.home(), "~")):
        if len(str(folder)) > 1:
            text = re.sub(rf"{re.escape(str(folder))}(?![\w-])", name, text)
    return text


def _outcome(
    journal: list[dict[str, Any]], ended: tuple[Status, str] | None, phases: list[Phase]
) -> tuple[Status, str | None, PhaseName | None]:
    """(status, message, phase it failed in)."""
    last = journal[-1] if journal else {}
    where = phases[-1].name if phases else None
    if ended:
        return *ended, where
    if last.get("event") == "done":
        return "ok", None, None
    if last.get("event") == "failed":
        return last["status"], last["message"], where
    return "crashed", "the worker ended without a word", where


def _phases(journal: list[dict[str, Any]], rows: dict[str, list[Any]], wall_s: float | None) -> list[Phase]:
    """Phases in order; one that was cut short ends with the journal, its torch peaks unknown."""
    found: list[Phase] = []
    begun = [(i, e) for i, e in enumerate(journal) if e["event"] == "phase"]
    for i, event in begun:
        ends = [e for e in journal[i:] if e["event"] == "peaks" and e["name"] == event["name"]]
        following = [e["t_s"] for e in journal[i + 1 :] if e["event"] == "phase"]
        last_word = wall_s if wall_s is not None else journal[-1]["t_s"]
        end_s = ends[0]["t_s"] if ends else min([*following[:1], last_word])
        peaks = {k: v for k, v in (ends[0] if ends else {}).items() if k.startswith("torch_")}
        inside = [n for n, t in enumerate(rows.get("t_s", [])) if event["t_s"] <= t <= end_s]
        for column, name in _SAMPLED.items():
            values = [rows[column][n] for n in inside if rows[column][n] is not None]
            peaks[name] = max(values) if values else None
        found.append(Phase(name=event["name"], start_s=event["t_s"], wall_s=end_s - event["t_s"], **peaks))
    return found


def _facts(journal: list[dict[str, Any]], folder: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """(the good facts by field, what is wrong with each of the others); the last word on a field counts."""
    lines = [e for e in journal if e["event"] == "step"]
    told = {e["name"]: e["value"] for e in journal if e["event"] == "fact"}
    told["steps"] = {name: [e.get(name) for e in lines] for name in Steps.model_fields}
    good, faults = {}, {}
    for name, plain in told.items():
        try:
            kind: Any = Record.model_fields[name].annotation
            value = TypeAdapter(kind).validate_python(plain)
        except KeyError:
            faults[name] = f"{name}: left out: a record has no such field"
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, (name, *first["loc"])))
            faults[name] = f"{name}: left out: {where}: {first['msg']}"
        else:
            wrong = [ref.path for ref in files_of(value) if not _is_there(ref, folder)]
            if wrong:
                faults[name] = f"{name}: left out: {wrong[0]} is missing or was changed after it was hashed"
            else:
                good[name] = value
    return good, faults


def _phase_of(name: str, journal: list[dict[str, Any]]) -> PhaseName | None:
    """The phase that was the last to begin before the fact was written."""
    last = max((n for n, e in enumerate(journal) if e["event"] == "fact" and e["name"] == name), default=len(journal))
    return next((e["name"] for e in reversed(journal[:last]) if e["event"] == "phase"), None)


def _is_there(ref: FileRef, folder: Path | None) -> bool:
    path = (folder or Path()) / ref.path
    return path.is_file() and sha256_file(path) == ref.sha256


def _timeline_rows(path: Path) -> dict[str, list[Any]]:
    if not path.exists():
        return {}
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read().to_pydict()  # read_table would import pandas, seconds on a slow CPU
