"""The clock: the callback that owns the time of every step, whichever backend trains."""

import time
from typing import Any

from bench.cell import Cell
from bench.errors import Diverged
from bench.events import Journal


def clock(cell: Cell, journal: Journal, stream: Any, after_first_step: Any) -> Any:
    """The callback that owns the time: a step runs from the end of the one before to its own end, GPU synchronised."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        phase: Any = None
        mark = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._enter("warmup" if cell.untimed_steps else "steady")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronise()
            now = time.monotonic()
            self.wall_s, self.mark = now - self.mark, now

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs:
                return
            step, per_step = state.global_step, cell.gradient_accumulation_steps
            batches = stream.batches[(step - 1) * per_step : step * per_step]
            journal.write(
                "step",
                step=step,
                wall_s=self.wall_s,
                loss=float(logs["loss"]),
                grad_norm=_maybe_float(logs.get("grad_norm")),
                learning_rate=_maybe_float(logs.get("learning_rate")),
                samples=sum(b.rows for b in batches),
                padded_tokens=sum(b.padded_tokens for b in batches),
                real_tokens=sum(b.real_tokens for b in batches),
                trained_tokens=sum(b.trained_tokens for b in batches),
                trainer_tokens_seen=state.num_input_tokens_seen or None,
                trainer_log_s=journal.now_s(),
            )
            if not float("-inf") < float(logs["loss"]) < float("inf"):
                raise Diverged(f"loss is {logs['loss']} at step {step}")
            if step == 1:
                after_first_step()
            if step == cell.untimed_steps:
                self._enter("steady")
            elif step == 1:
                self.mark = time.monotonic()

        def _enter(self, phase: Any) -> None:
            self.finish()
            synchronise()
            journal.begin(phase)
            self.phase, self.mark = phase, time.monotonic()

        def finish(self) -> None:
            """End the phase that is open, with its peaks."""
            if self.phase:
                journal.end(self.phase)
            self.phase = None

    return Clock()


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _maybe_float(value: Any) -> float | None:
    return None if value is None else float(value)
