"""Experiments that are no fine-tune pairs: each runs in fresh processes and leaves one folder with raw samples.

    EXPERIMENTS/NAME/ID/experiment.json    settings, environment, what each process measured
    EXPERIMENTS/NAME/ID/*.jsonl            replies, where an experiment scores some

The parent never imports torch: ``python -m bench.claims.worker`` does the work. ``bench.claims.readings`` turns a
record into numbers.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from bench import environment
from bench.cache import kept_bytecode
from bench.cell import Frozen
from bench.environment import Environment
from bench.errors import PeftmarkError
from bench.record import FileRef
from bench.store import disk_errors

FILE = "experiment.json"
SMOLLM2 = {"model": "smollm2-135m-instruct", "source": "packaged"}


class ExperimentRecord(Frozen):
    """One experiment: raw samples of every process, no statistics."""

    schema_version: Literal[1] = 1
    id: str
    experiment: str
    settings: dict[str, Any]
    environment: Environment
    device: str
    """cpu, or the GPU that torch used."""
    started_at: str
    processes: list[dict[str, Any]]
    """What each fresh process measured, in order; units are in the names."""
    files: list[FileRef] = []


@dataclass(frozen=True)
class Kind:
    """An experiment that can be run."""

    name: str
    about: str
    settings: dict[str, Any]
    processes: int = 1
    """Fresh processes: latencies need three for an interval."""
    minutes: float = 1.0
    """Expected on two CPU cores."""


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "adapter-size", "adapter bytes by rank: saved files, and the formula for larger models",
            SMOLLM2 | {"ranks": [1, 2, 4, 8, 16, 32, 64, 128], "formula_models": ["llama-3.1-8b", "llama-3.3-70b"]},
        ),
        Kind(
            "merge", "outputs and latency of base, unmerged and merged adapter",
            SMOLLM2 | {"r": 16, "precision": "fp32", "tokens": 32, "rows": 1, "rounds": 6}, processes=3, minutes=1.5,
        ),
        Kind(
            "switch", "three adapters on one base: latency of a switch, outputs against a fresh load",
            SMOLLM2 | {"r": 16, "precision": "fp32", "adapters": 3, "rounds": 3, "tokens": 16},
        ),
        Kind(
            "training-state", "bytes of gradients, optimizer state and checkpoint, LoRA against full fine-tuning",
            SMOLLM2 | {"r": 16, "precision": "fp32", "tokens": 32},
        ),
        Kind(
            "prompt-format", "sums of two terms: structured prompt against bare question, before and after a fine-tune",
            SMOLLM2 | {"r": 16, "largest_term": 20, "items": 80, "train_items": 240, "steps": 30, "batch_size": 8,
                       "seed": 3407, "learning_rate": 1e-3, "max_new_tokens": 16},
            minutes=4.0,
        ),
    )
}  # fmt: skip
"""Every experiment by name."""


def run(kind: Kind, root: Path, *, settings: dict[str, Any] | None = None,
        say: Callable[[str], None] = lambda line: None) -> ExperimentRecord:  # fmt: skip
    """Run the experiment's processes and store its record below ``root``; PeftmarkError with a process's reason."""
    wanted = kind.settings | (settings or {})
    started = datetime.now(UTC)
    id = f"{started:%Y%m%dT%H%M%S.%fZ}-{kind.name}-{secrets.token_hex(2)}"
    folder, draft = root / kind.name / id, root / kind.name / f".{id}"
    with disk_errors(root):
        draft.mkdir(parents=True)
    try:
        processes = []
        for number in range(kind.processes):
            say(f"{kind.name}: process {number + 1} of {kind.processes}")
            processes.append(_process(kind.name, wanted | {"process": number}, draft))
        record = ExperimentRecord(
            id=id, experiment=kind.name, settings=wanted, environment=environment.current(),
            device=processes[0].pop("device"), started_at=started.isoformat(timespec="seconds"),
            processes=[{k: v for k, v in one.items() if k != "device"} for one in processes],
            files=[FileRef.of(path, draft) for path in sorted(draft.glob("*.jsonl"))],
        )  # fmt: skip
        with disk_errors(folder):
            (draft / FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return record


def _process(name: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    request = json.dumps({"experiment": name, "settings": settings, "folder": str(folder.resolve())})
    done = subprocess.run(
        [sys.executable, "-m", "bench.claims.worker"], input=request, text=True, capture_output=True, check=False,
        env=os.environ | kept_bytecode() | {"TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    answer: dict[str, Any] = json.loads(lines[-1]) if lines and not done.returncode else {}
    if done.returncode or "error" in answer or not answer:
        reason = answer.get("error") or (done.stderr.strip().splitlines() or ["it died without a word"])[-1]
        raise PeftmarkError(f"experiment {name}: {reason}")
    return answer


@dataclass(frozen=True)
class Found:
    """An experiment's record and its folder."""

    record: ExperimentRecord
    folder: Path


def load(folder: Path) -> tuple[list[Found], list[str]]:
    """Every experiment below a folder, oldest first; and a line for each file that is none."""
    good, bad = [], []
    for path in sorted(folder.rglob(FILE)):
        if path.parent.name.startswith("."):
            continue
        try:
            good.append(Found(ExperimentRecord.model_validate_json(path.read_text(encoding="utf-8")), path.parent))
        except (ValidationError, ValueError, OSError) as error:
            bad.append(f"{path}: not an experiment's record: {str(error).splitlines()[0]}")
    return sorted(good, key=lambda one: one.record.id), bad


def publish(found: Found, into: Path) -> Path:
    """Copy the experiment's folder to ``into/claims/NAME/ID``; one that is there already stays."""
    target = into / "claims" / found.record.experiment / found.record.id
    if not target.exists():
        with disk_errors(target):
            shutil.copytree(found.folder, target)
    return target
