"""Level model: tiny models through Unsloth's GPU code path on a CPU, in a fresh process that sees the release."""

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

from bench.cache import cache_dir, publish_folder
from bench.cell import digest_of
from bench.environment import harness_sha256, package_version
from bench.errors import PeftmarkError
from bench.regress.overlay import Overlay
from bench.regress.process import NO_GPU, Ended, run
from bench.regress.reading import Reading
from kernels_check import whole_model_reference
from kernels_check.whole_model import ModelEntry

TIMEOUT_S = 600.0
JOBS = ("llama,float32", "llama,bfloat16")
"""Shape and dtype: float32 for the sharpest tolerance, bfloat16 for the fused LoRA, which float32 leaves out."""


def measure(overlay: Overlay, *, jobs: tuple[str, ...] = JOBS, timeout_s: float = TIMEOUT_S) -> list[Reading]:
    """Compare with HF + PEFT in float64, then the release with itself (``model_child``).

    Raises PeftmarkError with the reason where nothing could be run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        shutil.copytree(_reference(jobs, timeout_s), folder)
        command = [sys.executable, "-m", "bench.regress.levels.model_child", str(folder), *jobs]
        _ran("the release's", run(command, [overlay.folder], timeout_s, folder, NO_GPU), timeout_s)
        parity = [reading for job in jobs for reading in _parity(folder / job, *job.split(","))]
        own = folder / "readings.json"
        if not own.is_file():
            return [*parity, Reading(name="model/runs", state="bad", text="its process died")]
        said = json.loads(own.read_text(encoding="utf-8"))
    return [*parity, Reading(name="model/runs", state="good"), *(Reading(**item) for item in said)]


def _reference(jobs: tuple[str, ...], timeout_s: float) -> Path:
    """What HF + PEFT of this environment give in float64: made once for these libraries, since no release is in it."""
    made_with = [*(package_version(name) for name in ("torch", "transformers", "peft")), *jobs]
    key = digest_of([*made_with, harness_sha256(Path(whole_model_reference.__file__).parent)])

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "kernels_check.whole_model", "reference", str(folder), *jobs]
        _ran("the reference's", run(command, [], timeout_s, folder, NO_GPU), timeout_s)

    return publish_folder(make, cache_dir() / "references" / key)


def _ran(whose: str, ended: Ended, timeout_s: float) -> None:
    if ended.code is None:
        raise PeftmarkError(f"{whose} process did not end in {timeout_s:.0f} s")
    if ended.code:
        raise PeftmarkError(f"{whose} process could not run: {ended.why}")


def _parity(place: Path, shape: str, dtype: str) -> list[Reading]:
    """What the whole-model check found: loss and every LoRA gradient against the reference, and, apart from it, whether
    the kernels ran that are expected of the newest release (an older one may have others)."""
    what = f"{shape}/{dtype}"
    if not (file := place / "entry.json").is_file():
        error = place / "error"
        text = (
            f"crashed: {error.read_text(encoding='utf-8').splitlines()[0]}" if error.is_file() else "its process died"
        )
        return [Reading(name=f"model/reference/{what}", state="bad", text=text)]
    entry = ModelEntry.model_validate_json(file.read_text(encoding="utf-8"))
    errors = [entry.loss_tolerances, entry.gradient_tolerances, entry.median_tolerances]
    worst = max(math.inf if error is None or math.isnan(error) else error for error in errors)
    reasons = (entry.reason or "").split("; ") if entry.reason else []
    wrong, unseen = ([r for r in reasons if ("tolerances" in r) == numeric] for numeric in (True, False))
    return [
        Reading(name=f"model/reference/{what}", state="bad" if wrong else "good", values=[float(f"{worst:.3g}")],
                unit="tolerances", text="; ".join(wrong)),
        Reading(name=f"model/launched/{what}", state="bad" if unseen else "good", text="; ".join(unseen)),
    ]  # fmt: skip
