"""A backend without a model: scripted steps, no heavy import. What most of the harness's own tests run on.

``cell.model`` chooses the script: ``fake`` succeeds; ``fake-oom``, ``fake-crash``, ``fake-diverge``, ``fake-audit``,
``fake-unsupported``, ``fake-hang``, ``fake-exit`` fail in the steady phase in that way. Under a VRAM budget any of them
first runs out of memory where ``need_bytes`` is above it.
"""

import os
import time

from bench.backends.base import WorkerJob
from bench.cell import Cell
from bench.environment import Environment
from bench.errors import AuditError, Diverged, Unsupported
from bench.events import Journal

STEP_S = 0.01
WEIGHTS_BYTES = 2 * 2**30
TOKEN_BYTES, RANK_BYTES = 2**18, 2**24


class OutOfMemoryError(RuntimeError):
    """Named as torch names it, since the worker classifies by name."""


def need_bytes(cell: Cell) -> int:
    """What a step of the cell takes: weights, adapter and activations, each linear in what it depends on."""
    return WEIGHTS_BYTES + RANK_BYTES * (cell.r or 0) + TOKEN_BYTES * cell.batch_size * cell.max_length


class Fake:
    """See the module's docstring."""

    def unsupported(self, cell: Cell, machine: Environment) -> str | None:
        """See ``Backend``."""
        return "asked for by the model's name" if cell.model == "fake-unsupported-plan" else None

    def run(self, job: WorkerJob, journal: Journal) -> None:
        """See ``Backend``."""
        with journal.phase("import", t_s=0.0):
            pass
        with journal.phase("load"):
            time.sleep(STEP_S)
        for step in range(1, job.cell.max_steps + 1):
            if step in (1, job.cell.untimed_steps + 1):
                if step > 1:
                    journal.end("warmup")
                journal.begin("warmup" if step <= job.cell.untimed_steps else "steady")
            if step > job.cell.untimed_steps:
                if job.cell.vram_budget_bytes is not None and need_bytes(job.cell) > job.cell.vram_budget_bytes:
                    raise OutOfMemoryError("CUDA out of memory. (scripted)")
                _misbehave(job.cell.model)
            time.sleep(STEP_S)
            tokens = job.cell.batch_size * job.cell.max_length * job.cell.gradient_accumulation_steps
            journal.write(
                "step", step=step, wall_s=STEP_S, loss=1 / step, grad_norm=1.0, learning_rate=job.cell.learning_rate,
                samples=job.cell.batch_size, padded_tokens=tokens, real_tokens=tokens, trained_tokens=tokens,
                trainer_tokens_seen=tokens * step, trainer_log_s=journal.now_s(),
            )  # fmt: skip
        journal.end("steady")


def _misbehave(script: str) -> None:
    match script:
        case "fake-oom":
            raise OutOfMemoryError("CUDA out of memory. (scripted)")
        case "fake-crash":
            raise ValueError("scripted crash")
        case "fake-diverge":
            raise Diverged("loss is nan (scripted)")
        case "fake-audit":
            raise AuditError("audit: base_precision: asked for nf4, got bf16 (scripted)")
        case "fake-unsupported":
            raise Unsupported("scripted")
        case "fake-hang":
            time.sleep(3600)
        case "fake-exit":
            os._exit(7)
