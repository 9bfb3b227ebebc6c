"""Reads what the commands of ``peftmark kernels`` wrote: one file, or all of a folder, told apart by their fields."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bench.errors import InputError
from kernels_check.mutate import MutationRecord
from kernels_check.page.timings import Timings
from kernels_check.record import SCHEMA_VERSION, KernelRecord
from kernels_check.whole_model import ModelRecord

Content = KernelRecord | MutationRecord | ModelRecord | Timings
T = TypeVar("T", bound=BaseModel)
FIELDS: dict[str, type[Content]] = {
    "benchmarks": Timings,
    "outcomes": MutationRecord,
    "checks_sha256": KernelRecord,
    "entries": ModelRecord,
}
"""The first of these fields that a file has says what it is."""
COMMANDS = "write it with: peftmark kernels check, mutate, model or speed, with --out FILE"


def read_check(path: Path) -> KernelRecord:
    """The record of one check. InputError where the file is none."""
    content = read(path)
    if not isinstance(content, KernelRecord):
        raise InputError(str(path), "is no record of a check", "write one with: peftmark kernels check --out FILE")
    return content


def read(path: Path) -> Content:
    """The content of one file. InputError where it cannot be read, or a field is missing or wrong."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", COMMANDS) from error
    except ValueError as error:
        raise InputError(str(path), f"is not JSON: {error}", COMMANDS) from error
    kind = next((FIELDS[name] for name in FIELDS if isinstance(raw, dict) and name in raw), None)
    if kind is None:
        raise InputError(str(path), f"has none of the fields {', '.join(FIELDS)}", COMMANDS)
    return _validated(path, raw, kind)


def read_folder(folder: Path) -> dict[Path, Content]:
    """The content of every JSON file of a folder, by its path. InputError where there is none, or one is wrong."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise InputError(str(folder), "holds no JSON file", COMMANDS)
    return {path: read(path) for path in files}


def _validated(path: Path, raw: dict[str, Any], kind: type[T]) -> T:
    version = raw.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(f"{path}, schema_version", f"{version} is newer than {SCHEMA_VERSION}", "upgrade peftmark")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first, *rest = error.errors(include_url=False)
        place = ".".join(str(part) for part in first["loc"])
        more = f" (and {len(rest)} more fault(s))" if rest else ""
        raise InputError(f"{path}, {place}", f"{first['msg']}{more}", COMMANDS) from error
