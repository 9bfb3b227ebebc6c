"""A whole model: Unsloth's GPU code path under the interpreter against HF + PEFT in float64.

    reference process: plain transformers + peft --weights, tokens, loss, gradients--> folder
    Unsloth process: imports unsloth once, forks one process a shape and dtype --entries--> ModelRecord

Tiny Llama, Qwen and Gemma shapes with random weights, rounded to the dtype before the reference reads them; LoRA on
all projections with a non-zero B. Compared are the loss and every LoRA gradient: the distance of a tensor from the
reference in units of the reference's norm. The tolerance is that of ``bench.rounding`` (how far rounding alone may take
one training from another), without its allowance for sketches: here whole tensors are compared. That bound knows no
amplification of errors on their way through the model: B is small, as in training, and the distance of HF + PEFT in the
same dtype is recorded beside Unsloth's (with entries of B around 0.5, random weights amplify, and HF + PEFT itself
exceeds the bound).

float32 base weights skip Unsloth's fused LoRA, bfloat16 ones take it.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from bench import environment
from bench.cell import Frozen
from bench.environment import Environment
from bench.errors import InputError, nearest
from bench.probe import DISTANCE_ERROR
from bench.rounding import Rounding
from kernels_check import interpreter, loading
from kernels_check.processes import child_environment, could_not_run, forked
from kernels_check.whole_model_gpu import claim_bfloat16, stand_in_for_a_gpu
from kernels_check.whole_model_reference import loss_and_gradients, write_reference
from kernels_check.whole_model_shapes import ALPHA, DTYPES, IGNORED, INTERMEDIATE, LAYERS, RANK, SHAPES, TARGETS

SCHEMA_VERSION = 1


class ModelEntry(Frozen):
    """One shape and dtype."""

    shape: str
    dtype: str
    status: Literal["passed", "failed", "not exercised", "crashed"]
    reason: str | None = None
    loss_tolerances: float | None = None
    """Error of the loss, in tolerances."""
    gradient_tolerances: float | None = None
    """The worst LoRA gradient's distance, in tolerances."""
    gradient_distance: float | None = None
    """The same, relative to the norm of the reference."""
    gradient: str | None = None
    """Which tensor that is."""
    median_tolerances: float | None = None
    base_dtype: str | None = None
    """What the base weights really were: Unsloth may choose another dtype than it was asked for."""
    hf_distance: float | None = None
    """For comparison: the worst distance of HF + PEFT in the same dtype."""
    gradients: int = 0
    """How many were compared."""
    launched: dict[str, int] = {}
    forwards: dict[str, str] = {}
    """Class of a module to the Python module that its forward comes from."""
    seconds: float = 0.0


class ModelRecord(Frozen):
    """One run of ``peftmark kernels model``."""

    schema_version: int = SCHEMA_VERSION
    created: datetime
    versions: dict[str, str | None]
    environment: Environment
    not_covered: list[str]
    entries: list[ModelEntry]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every entry passed."""
        return all(entry.status == "passed" for entry in self.entries)


def check_models(*, only: list[str] | None = None, dtypes: tuple[str, ...] = tuple(DTYPES)) -> ModelRecord:
    """Compare the shapes ``only`` (default: all). Raises InputError for an unknown one, or where nothing can run."""
    for name in only or []:
        if name not in SHAPES:
            raise InputError("--only", f"unknown shape {name!r}", nearest(name, list(SHAPES)))
    start, jobs = time.monotonic(), [f"{shape},{dtype}" for shape in only or SHAPES for dtype in dtypes]
    with tempfile.TemporaryDirectory() as folder:
        for step in ("reference", "unsloth"):
            _run(step, folder, jobs)
        entries = [_read(Path(folder, job), *job.split(",")) for job in jobs]
    names = ("unsloth", "unsloth_zoo", "triton", "torch", "transformers", "peft")
    return ModelRecord(
        created=datetime.now(UTC),
        versions={name: loading.version(name) for name in names},
        environment=environment.current(),
        not_covered=[*interpreter.NOT_COVERED, "torch.compile, the GPU's attention kernels, autocast and the trainer"],
        entries=entries,
        seconds=round(time.monotonic() - start, 2),
    )


def _run(step: str, folder: str, jobs: list[str]) -> None:
    settings = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
    command = [sys.executable, "-m", "kernels_check.whole_model", step, folder, *jobs]
    ran = subprocess.run(command, env=child_environment() | settings, cwd=folder, capture_output=True, text=True)
    if ran.returncode:
        raise could_not_run("kernels model", f"{step} process", ran.stderr)


def _read(place: Path, shape: str, dtype: str) -> ModelEntry:
    if (file := place / "entry.json").is_file():
        return ModelEntry.model_validate_json(file.read_text("utf-8"))
    reason = (place / "error").read_text("utf-8") if (place / "error").is_file() else "its process died"
    return ModelEntry(shape=shape, dtype=dtype, status="crashed", reason=reason)


def main(arguments: list[str]) -> None:
    """The two processes: see the module's docstring."""
    step, folder, *jobs = arguments
    if step == "reference":
        for job in jobs:
            write_reference(Path(folder, job), *job.split(","))
        return
    interpreter.prepare_environment()
    stand_in_for_a_gpu()
    import triton  # noqa: F401

    interpreter.mend()
    import unsloth  # noqa: F401  # before transformers and peft
    import torch  # isort: skip

    claim_bfloat16()

    torch.set_num_threads(1)
    for _ in forked(_unsloth, [Path(folder, job) for job in jobs]):
        pass


def _unsloth(place: Path) -> None:
    """In the forked process: run and compare; never raises."""
    start, (shape, dtype) = time.monotonic(), place.name.split(",")
    try:
        entry = _compared(place, shape, dtype)
        seconds = round(time.monotonic() - start, 2)
        (place / "entry.json").write_text(json.dumps(entry | {"seconds": seconds}), encoding="utf-8")
    except Exception as error:  # whatever a release raises is that entry's failure
        (place / "error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")


def _compared(place: Path, shape: str, dtype: str) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file
    from unsloth import FastLanguageModel

    from kernels_check.launches import watched

    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(place / "model"), max_seq_length=64, dtype=getattr(torch, dtype), load_in_4bit=False,
        use_gradient_checkpointing=False, device_map={"": "cpu"}, fix_tokenizer=False,
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none", target_modules=TARGETS,
        use_gradient_checkpointing=False,
    )  # fmt: skip
    given, adapter = load_file(place / "tokens.safetensors"), load_file(place / "adapter.safetensors")
    with watched() as launched:
        loss, got = loss_and_gradients(model, adapter, given["tokens"], given["labels"])
    reference, hf = load_file(place / "reference.safetensors"), load_file(place / "hf.safetensors")
    distances = {name: _distance(got[name], reference[name]) for name in got}
    worst = max(distances, key=distances.__getitem__)
    rounding, sketch = Rounding.of(DTYPES[dtype], LAYERS, INTERMEDIATE), 1 + 4 * DISTANCE_ERROR
    kept = int((given["labels"][:, 1:] != IGNORED).sum())
    errors = {
        "loss": _distance(loss, reference["loss"]) / rounding.loss(kept),
        "gradient": distances[worst] / (rounding.tensor() / sketch),
        "median": median(distances.values()) / (rounding.median_tensor() / sketch),
    }
    wrong = [f"{what}: {error:.3g} tolerances" for what, error in errors.items() if not error <= 1]
    base_dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    unseen = _unseen(shape, dtype, launched, forwards := _forwards(model))
    if base_dtype != dtype:
        unseen.append(f"the base weights are {base_dtype}")
    return {
        "shape": shape,
        "dtype": dtype,
        "status": "failed" if wrong else "not exercised" if unseen else "passed",
        "reason": "; ".join(wrong + unseen) or None,
        **{f"{what}_tolerances": error for what, error in errors.items()},
        "gradient_distance": distances[worst],
        "gradient": worst,
        "hf_distance": max(_distance(hf[name], reference[name]) for name in got),
        "gradients": len(got),
        "base_dtype": base_dtype,
        "launched": dict(sorted(launched.items())),
        "forwards": forwards,
    }


def _distance(got: Any, expected: Any) -> float:
    """|got - expected| / |expected|; infinite where something is not finite."""
    distance = float((got - expected).norm() / expected.norm())
    return distance if math.isfinite(distance) else math.inf


def _forwards(model: Any) -> dict[str, str]:
    return {type(part).__name__: part.forward.__module__ for part in model.modules()}


def _unseen(shape: str, dtype: str, launched: dict[str, int], forwards: dict[str, str]) -> list[str]:
    """What should have run and did not."""
    expected = SHAPES[shape]
    kernels = expected.kernels + (expected.fused if dtype != "float32" else ())
    missing = [f"not launched: {name}" for name in kernels if not launched.get(name)]
    attention = {name: module for name, module in forwards.items() if name.endswith("Attention")}
    foreign = [f"{name}.forward comes from {module}" for name, module in attention.items() if module != expected.module]
    return missing + foreign


if __name__ == "__main__":
    main(sys.argv[1:])
