"""Level kernels: kernels_check on a CPU, in a fresh process that sees the release."""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from bench.errors import PeftmarkError
from bench.regress.overlay import Overlay
from bench.regress.process import NO_GPU, run
from bench.regress.reading import Reading, State
from kernels_check.families import FAMILIES
from kernels_check.record import Entry, KernelRecord, Status

TIMEOUT_S = 1200.0
QUICK = (
    "cross_entropy", "mean_cross_entropy", "linear_cross_entropy", "swiglu", "fast_lora", "rms_layernorm_options",
    "rope_decoding",
)  # fmt: skip
"""Losses, gates, LoRA, norms and rope in under a minute on two cores. The norms and rope of training take longest; the
model level runs them. ``all`` is for a release that is to be taken into use."""
STATES: dict[Status, State] = {
    "passed": "good", "failed": "bad", "crashed": "bad", "not exercised": "bad", "not runnable here": "unknown",
}  # fmt: skip
"""not exercised: the kernel was there and did not run, so it was switched off."""


def families(chosen: str) -> list[str]:
    """``quick``, ``all``, or names with commas between them, which ``kernels_check`` checks."""
    return {"quick": list(QUICK), "all": list(FAMILIES)}.get(chosen, chosen.split(","))


def measure(overlay: Overlay, *, chosen: str = "quick", timeout_s: float = TIMEOUT_S) -> list[Reading]:
    """One state a case, dtype and candidate of Unsloth's, and the worst error of each family.

    Raises PeftmarkError with the reason where the check could not run.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, only = Path(folder, "record.json"), [part for name in families(chosen) for part in ("--only", name)]
        command = [sys.executable, "-m", "bench", "kernels", "check", "--device", "cpu", "--out", str(out), *only]
        ended = run(command, [overlay.folder], timeout_s, settings=NO_GPU)
        if ended.code is None:
            raise PeftmarkError(f"the check of the kernels did not end in {timeout_s:.0f} s")
        if not out.is_file():
            raise PeftmarkError(f"the check of the kernels could not run: {ended.why}")
        return readings(KernelRecord.model_validate_json(out.read_text(encoding="utf-8")))


def readings(record: KernelRecord) -> list[Reading]:
    """The readings of a record; candidates that are not Unsloth's are left out."""
    found, worst = [], defaultdict[str, list[float]](list)
    for entry in record.entries:
        if not entry.candidate.startswith("unsloth"):
            continue
        errors = [error.tolerances for error in (entry.forward, entry.gradient) if error]
        if entry.status == "passed":
            worst[entry.family] += errors
        text = "" if entry.status == "passed" else f"{entry.status}: {_reason(entry)}"
        name = f"kernels/{entry.family}/{entry.case}/{entry.dtype}/{entry.candidate}"
        values = [float(f"{max(errors):.3g}")] if errors and text else []
        found.append(Reading(name=name, state=STATES[entry.status], values=values, unit="tolerances", text=text))
    return found + [
        Reading(name=f"kernels/{family}/worst error", values=[float(f"{max(errors):.3g}")], exact=True,
                unit="tolerances", text="of the cases that passed")
        for family, errors in worst.items() if errors
    ]  # fmt: skip


def _reason(entry: Entry) -> str:
    return " ".join([entry.reason or "", *entry.switched_off]).strip()
