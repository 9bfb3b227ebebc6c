"""Where records live: a run folder that is valid at every moment, whoever is killed.

    RUN/suite.yaml                    the suite that was last run here
    RUN/.lock                         held while a run writes here
    RUN/work/ID/                      the cell being run; swept when the next run starts
    RUN/records/SLUG/ID/record.json   one folder a record, with its timeline, evaluation and adapter beside it
    RUN/withdrawn/                    records that are kept, and not read

A record's folder is filled in ``work`` and renamed into ``records``: it is there whole or not at all, and never
overwritten.
"""

import errno
import fcntl
import gc
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from bench import fingerprint
from bench.cache import sha256_file
from bench.cell import Cell
from bench.environment import Environment
from bench.errors import StoreError
from bench.record import SCHEMA_VERSION, Fingerprint, GradientProbe, Record

RECORD = "record.json"
WORK = "work"
"""Folder of the cell being run."""
WITHDRAWN = "withdrawn"
"""Folder of records that are kept and no longer read; a file beside them says why."""


@dataclass(frozen=True)
class Loaded:
    """A record and where it was read from."""

    record: Record
    folder: Path


def whole_file(loaded: Loaded, fact: GradientProbe | Fingerprint | None) -> Path | None:
    """The file beside the record that the fact names, if it is there and is the one that was hashed."""
    file = loaded.folder / fact.file.path if fact else None
    return file if fact and file and file.is_file() and sha256_file(file) == fact.file.sha256 else None


@dataclass(frozen=True)
class Unreadable:
    """A record file that is not a record, and why."""

    path: Path
    reason: str


def new_id(cell: Cell) -> str:
    """UTC time to the microsecond (so that ids sort by time), the cell's digest, and a random suffix."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{cell.digest[:8]}-{secrets.token_hex(2)}"


def readable_json(record: Record) -> str:
    """The record as indented JSON, a list of numbers or strings on one line."""
    text = record.model_dump_json(indent=1)
    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s*\]", lambda m: "[" + re.sub(r"\n\s+", " ", m[1]) + "]", text) + "\n"


class Store:
    """One run folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; a second run into it is refused. Sweeps what a killed run left half-done."""
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / ".lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise StoreError(
                f"{self.root}: another run is writing here\n  mend: wait for it, stop it, or give --out another folder"
            ) from None
        try:
            shutil.rmtree(self.root / WORK, ignore_errors=True)
            yield
        finally:
            file.close()

    def workspace(self, id: str) -> Path:
        """A fresh folder for the cell being run."""
        folder = self.root / WORK / id
        with disk_errors(folder):
            folder.mkdir(parents=True)
        return folder

    def add(self, record: Record, workspace: Path) -> Path:
        """Write the record into its workspace and move that into ``records``; returns the record's folder."""
        target = self.root / "records" / record.cell.slug / record.id
        with disk_errors(target):
            if target.exists():
                raise StoreError(f"{target}: a record of that id is there already; records are never overwritten")
            with (workspace / RECORD).open("w", encoding="utf-8") as file:
                file.write(readable_json(record))
                file.flush()
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            workspace.rename(target)
        return target

    def discard(self, workspace: Path) -> None:
        """Drop the workspace of a cell that was interrupted."""
        shutil.rmtree(workspace, ignore_errors=True)

    def keep_suite(self, text: str) -> None:
        """Keep the suite file's text beside its records, whole or as it was."""
        draft = self.root / ".suite.yaml"
        with disk_errors(self.root):
            draft.write_text(text, encoding="utf-8")
            draft.rename(self.root / "suite.yaml")

    def load(self) -> tuple[list[Loaded], list[Unreadable]]:
        """Every record below the folder, oldest first, and every file that could not be read as one."""
        return load(self.root)


def load(folder: Path) -> tuple[list[Loaded], list[Unreadable]]:
    """Read all records below ``folder``; broken ones are reported, never fatal."""
    good: list[Loaded] = []
    bad: list[Unreadable] = []
    with _collector_off():
        for one in read_all(folder):
            if isinstance(one, Loaded):
                good.append(one)
            else:
                bad.append(one)
    return sorted(good, key=lambda item: item.record.id), bad


@contextmanager
def _collector_off() -> Iterator[None]:
    """Records hold no cycles: going through all that were read, again and again, is a third of the time of reading."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_all(folder: Path) -> Iterator[Loaded | Unreadable]:
    """The records below ``folder`` one by one, sorted by path: many more than fit into memory can be gone through."""
    shared = Shared()
    for path in record_files(folder):
        yield read(path, shared)


def record_files(folder: Path) -> Iterator[Path]:
    """Every record file below ``folder``, sorted."""
    found = []
    for place, folders, files in os.walk(folder):
        if place == str(folder):
            folders[:] = (name for name in folders if name not in (WORK, WITHDRAWN))
        is_draft = os.path.basename(place).startswith(".")  # of a publication that was killed
        if RECORD in files and not is_draft:
            found.append(os.path.join(place, RECORD))
    yield from map(Path, sorted(found))


class Shared:
    """Cells and environments read of late: records of one cell or machine hold the same object, checked once.

    Sorted by path, records of one cell follow each other; past LIMIT all are forgotten, so that memory has an end.
    """

    LIMIT = 1000

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Any] = {}

    def put(self, content: dict[str, Any]) -> None:
        """Replace the parts of a record's content by the objects that they are."""
        for name, kind in (("cell", Cell), ("environment", Environment)):
            key = name, repr(content[name])
            if key not in self._known:
                if len(self._known) >= self.LIMIT:
                    self._known.clear()
                self._known[key] = kind.model_validate(content[name])
            content[name] = self._known[key]


def read(path: Path, shared: Shared | None = None) -> Loaded | Unreadable:
    """One record file; what is not a record is said, never raised."""
    try:
        content = from_json(path.read_bytes())
        version = content["schema_version"]
        if version > SCHEMA_VERSION:
            return Unreadable(path, f"schema version {version} is newer than this peftmark; upgrade it")
        if shared:
            shared.put(content)
        return _with_passes(Loaded(Record.model_validate(content), path.parent))
    except (ValueError, KeyError, TypeError, ValidationError, OSError) as error:
        return Unreadable(path, f"not a whole record: {str(error).splitlines()[0]}")


def _with_passes(loaded: Loaded) -> Loaded:
    """Older records have one profiled pass, and its time in kernels only in the file; where that is gone, none."""
    seen = loaded.record.fingerprint
    if seen is None or seen.device != "cuda" or seen.passes_s or not (file := whole_file(loaded, seen)):
        return loaded
    known = seen.model_copy(update={"passes_s": [fingerprint.pass_s_of(file)]})
    return Loaded(loaded.record.model_copy(update={"fingerprint": known}), loaded.folder)


def publish(loaded: Loaded, into: Path) -> Path:
    """Copy a record and every file that it names (not its adapter or log) below ``into``."""
    cell = loaded.record.cell
    for field, path in (("model", cell.model), ("custom_task.path", cell.custom_task and cell.custom_task.path)):
        if path and Path(path).is_absolute():
            raise StoreError(
                f"{loaded.folder}: {field} is an absolute path, which says where things lie on this machine\n"
                "  mend: run the suite again with a path relative to the suite's folder or to where you start"
            )
    names = [RECORD, *(ref.path for ref in loaded.record.files())]
    for name in names:
        if not (loaded.folder / name).is_file():
            raise StoreError(
                f"{loaded.folder}: {name} is not there\n  mend: publish the folder that the run wrote, whole"
            )
    target = into / cell.slug / loaded.record.id
    with disk_errors(target):
        if target.exists():
            raise StoreError(f"{target}: already published; records are never overwritten")
        if (gone := into / WITHDRAWN / cell.slug / loaded.record.id).exists():
            raise StoreError(f"{gone}: this record was withdrawn\n  mend: run the cell again, and publish that run")
        draft = target.with_name("." + target.name)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name in names:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(loaded.folder / name, draft / name)
        draft.rename(target)
    return target


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full or read-only disk becomes one sentence that says what was kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise StoreError(
            f"{path}: {os.strerror(error.errno or 0)}\n"
            "  mend: free space or give another --out; finished cells are kept, and the same command goes on from them"
        ) from error
