"""Records made up for tests, of a machine that does not exist ("Test GPU"): known numbers in, known findings out."""

from typing import Any, Literal

from bench.cell import Cell
from bench.environment import Environment, Gpu, Package
from bench.record import (
    AuditEntry,
    DataFacts,
    EvalResult,
    FileRef,
    Fingerprint,
    ModelFacts,
    Phase,
    Record,
    Steps,
)

GIB = 2**30
REAL_TOKENS, PADDED_TOKENS, ROWS = 800, 1000, 8
UNTIMED_S = [10.0, 2.0]
"""Seconds of the two warm-up steps."""


def environment(gpu: str | None = "Test GPU", torch: str = "2.11.0", driver: str | None = "580.1") -> Environment:
    gpus = [] if gpu is None else [Gpu(index=0, name=gpu, vram_bytes=80 * GIB, compute_capability="9.0", mig=False)]
    return Environment(
        gpus=gpus, driver=driver if gpus else None, cuda_driver="13.0" if gpus else None, cpu="Test CPU", cpu_cores=2,
        ram_bytes=8 * GIB, os="Test OS", kernel="6.0", python="3.12.0",
        packages={"torch": Package(version=torch, source="index"), "trl": Package(version="1.15.0", source="index")},
        variables={}, git_revision="0" * 40, git_dirty=False, harness_sha256="f" * 64,
    )  # fmt: skip


def evaluation(value: float) -> EvalResult:
    file = FileRef(path="eval.json", sha256="e" * 64, size_bytes=1)
    return EvalResult(
        task="chain-sum", metric="exact_match", value=value, stderr=0.05, items=100, results=file, samples=file
    )


RECOMPUTED = AuditEntry(name="forwards_per_layer", requested="2", effective="2", ok=True)


def profiled(pass_s: float, device: Literal["cuda", "cpu"] = "cuda") -> Fingerprint:
    """A fingerprint of one pass with ``pass_s`` in kernels, and the rest of ``device_s`` in copies."""
    file = FileRef(path="fingerprint.json", sha256="0" * 64, size_bytes=1)
    return Fingerprint(
        file=file, device=device, kernels=1, launches=1, device_s=9.0, passes_s=[pass_s], sha256="f" * 64
    )


def record(
    backend: str = "hf-peft",
    *,
    step_s: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    peak_gib: float = 20.0,
    import_s: float = 5.0,
    cell: dict[str, Any] | None = None,
    env: Environment | None = None,
    serial: int = 0,
    **fields: Any,
) -> Record:
    """A finished run: two untimed steps, then ``step_s``; any field of Record may be given to override."""
    setting = Cell.model_validate({
        "model": "llama-3.1-8b", "backend": backend, "untimed_steps": len(UNTIMED_S),
        "max_steps": len(UNTIMED_S) + len(step_s), **(cell or {}),
    })  # fmt: skip
    walls = [*UNTIMED_S, *step_s]
    count = len(walls)
    peak = int(peak_gib * GIB)
    meters = {
        "torch_allocated_peak_bytes": peak, "torch_reserved_peak_bytes": peak + GIB,
        "nvml_process_peak_bytes": peak + 2 * GIB, "nvml_device_peak_bytes": peak + 3 * GIB,
    }  # fmt: skip
    content: dict[str, Any] = {
        "id": f"2026-01-01T00-00-{serial:02d}-{setting.digest}-{backend}", "suite": "test",
        "audit": [RECOMPUTED] if fields.get("fingerprint") else [],
        "cell_digest": setting.digest, "cell": setting, "repeat": serial, "status": "ok",
        "started_at": "2026-01-01T00:00:00Z", "wall_s": 100.0, "environment": env or environment(), "device_index": 0,
        "phases": [
            Phase(name="import", start_s=0, wall_s=import_s),
            Phase(name="load", start_s=5, wall_s=7.0, torch_allocated_peak_bytes=6 * GIB),
            Phase(name="adapter", start_s=12, wall_s=1.0),
            Phase(name="warmup", start_s=13, wall_s=sum(UNTIMED_S), **{**meters, "torch_allocated_peak_bytes": GIB}),
            Phase(name="steady", start_s=25, wall_s=sum(step_s), **meters),
        ],
        "steps": Steps(
            wall_s=walls, loss=[2.0 - 0.1 * i for i in range(count)], grad_norm=[1.0] * count,
            learning_rate=[1e-4] * count, samples=[ROWS] * count, padded_tokens=[PADDED_TOKENS] * count,
            real_tokens=[REAL_TOKENS] * count, trained_tokens=[100] * count,
            trainer_tokens_seen=[PADDED_TOKENS * (i + 1) for i in range(count)],
            trainer_log_s=[25.0 + sum(walls[: i + 1]) for i in range(count)],
        ),
        "model": ModelFacts(
            weights="real", source_detail="test", config_sha256="c" * 64, weights_sha256="w" * 64,
            tokenizer_sha256="t" * 64,
        ),
        "data": DataFacts(train_sha256="d" * 64, stream_sha256="5" * 64, stream_checked_in_forward=True),
        "adapter": {"initial_sha256": "a" * 64},
    }  # fmt: skip
    return Record.model_validate({**content, **fields})


def unfinished(backend: str, status: str, message: str, phase: str | None = "load", **fields: Any) -> Record:
    """A run that did not end ok: no steps, no phases after the one it failed in."""
    return record(
        backend, status=status, message=message, failed_phase=phase, phases=[], steps=Steps(), data=None, model=None,
        **fields,
    )  # fmt: skip
