"""The gradient probe: are the two sides computing the same gradients, tensor by tensor?

Both load one non-degenerate adapter (with B = 0 the gradients of A would be zero), run one small batch through their
own trainer, and keep a count sketch of every adapter tensor's gradient (Charikar, Chen, Farach-Colton 2002): each
element is added, with a random sign, to one of ``BUCKETS`` buckets, signs and buckets drawn from the tensor's name.
A sketch is linear, so the distance between two sketches estimates that between the two gradients without bias. The
square of that estimate has a relative standard error of at most sqrt(2 / BUCKETS), the distance itself half of that
(``DISTANCE_ERROR``), whatever the tensor's size. Norms are exact.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench import adapters, trainer
from bench.record import FileRef, GradientProbe

FILE = "gradients.safetensors"
BUCKETS = 512
DISTANCE_ERROR = math.sqrt(1 / (2 * BUCKETS))
"""Relative standard error of a distance between sketches: 3.1 %."""
ROWS, TOKENS = 2, 128
"""Largest batch: rows, and tokens of each."""
FP16_SCALE = 1024.0
"""Loss scale of the probe's backward in fp16, the same for both sides; undone in the gradients."""


@dataclass(frozen=True)
class TensorDistance:
    """Two gradients of one tensor; the numbers are None where a side lacks the tensor."""

    name: str
    cosine: float | None = None
    relative_distance: float | None = None
    """|a - b| / |a|, a being the baseline; infinite where only a is zero."""
    norm_ratio: float | None = None
    """|b| / |a|."""
    missing_in: Literal["a", "b"] | None = None


def compare(a: Path, b: Path) -> list[TensorDistance]:
    """Distances of two probes' files, sorted by tensor name; a tensor that one side lacks is listed as missing there.

    The cosine follows from the norms and the distance, so its error shrinks with the distance.

    Raises ValueError: a file is no probe of this kind, or has another number of buckets.
    """
    left, right = _read(a), _read(b)
    return [_distance(name, left.get(name), right.get(name)) for name in sorted(left.keys() | right.keys())]


def measure(run: Any, seed: int, magnitudes: dict[str, Any], folder: Path) -> GradientProbe:
    """Load the probe's adapter into the trainer's model, take the gradients of one batch, write their sketches.

    The batch is the last ``TOKENS`` tokens (they hold the reply, so there is a loss) of each of the first ``ROWS``
    rows of the training set. ``run`` is the trainer after training; the model's adapter is overwritten and is not put
    back. ``magnitudes`` are ``adapters.undrawn`` as they were before training.

    Raises ValueError: the loss or a gradient is not finite.
    """
    import torch
    import transformers
    from safetensors.torch import save_file

    adapters.load_probe(run.model, seed, magnitudes)
    rows = _small(
        run.train_dataset.select(range(min(ROWS, run.args.per_device_train_batch_size, len(run.train_dataset))))
    )
    step = trainer.one_batch(run, rows)
    scaler = run.accelerator.scaler
    if scaler is not None:
        scaler.update(FP16_SCALE)
    transformers.set_seed(seed)  # dropout, where the cell has it
    loss = float(step())
    scale = 1.0 if scaler is None else FP16_SCALE

    sketches, norms = {}, {}
    for name, parameter in adapters.tensors(run.model).items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradient = gradient.detach().float().cpu() / scale
        sketches[name] = sketch(name, gradient)
        norms[name] = float(gradient.double().norm())
    run.model.zero_grad(set_to_none=True)
    if not all(map(math.isfinite, [loss, *norms.values()])):
        raise ValueError("the probe's loss or gradients are not finite")
    save_file(sketches, folder / FILE, {"buckets": str(BUCKETS), "norms": json.dumps(norms)})
    return GradientProbe(
        file=FileRef.of(folder / FILE, folder),
        tensors=len(sketches),
        loss=loss,
        rows=len(rows),
        tokens=sum(len(ids) for ids in rows["input_ids"]),
    )


def sketch(name: str, gradient: Any) -> Any:
    """The count sketch of a tensor, float32 of shape [BUCKETS]."""
    import torch

    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1)
    flat = gradient.flatten().double()
    draws = torch.randint(0, 2 * BUCKETS, flat.shape, generator=generator)
    signed = torch.where(draws % 2 == 0, flat, -flat)
    return torch.zeros(BUCKETS, dtype=torch.float64).index_add_(0, draws // 2, signed).float()


def _small(rows: Any) -> Any:
    """The last ``TOKENS`` tokens of every row; packed examples (``seq_lengths``) lose their heads with them."""

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        short = {k: row[k][-TOKENS:] for k in ("input_ids", "labels")}
        if "seq_lengths" in row:
            lengths: list[int] = []
            left = len(short["input_ids"])
            for length in reversed(row["seq_lengths"]):
                if left > 0:
                    lengths.insert(0, min(length, left))
                left -= length
            short["seq_lengths"] = lengths
        return short

    return type(rows).from_list([cut(row) for row in rows])


def _distance(name: str, a: tuple[float, Any] | None, b: tuple[float, Any] | None) -> TensorDistance:
    """``a`` and ``b`` are (norm, sketch)."""
    if a is None or b is None:
        return TensorDistance(name, missing_in="a" if a is None else "b")
    (norm_a, sketch_a), (norm_b, sketch_b) = a, b
    if not norm_a or not norm_b:
        same = norm_a == norm_b
        ratio = 1.0 if same else 0.0 if norm_a else math.inf
        return TensorDistance(name, 1.0 if same else 0.0, 0.0 if same else 1.0 if norm_a else math.inf, ratio)
    distance = math.sqrt(float(((sketch_a - sketch_b) ** 2).sum()))
    cosine = (norm_a**2 + norm_b**2 - distance**2) / (2 * norm_a * norm_b)
    return TensorDistance(name, max(-1.0, min(1.0, cosine)), distance / norm_a, norm_b / norm_a)


def _read(file: Path) -> dict[str, tuple[float, Any]]:
    """(norm, sketch in float64) by tensor name."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as stored:
        header = stored.metadata() or {}
        if header.get("buckets") != str(BUCKETS):
            raise ValueError(f"{file}: no gradient sketches of {BUCKETS} buckets")
        norms = json.loads(header["norms"])
        return {name: (norms[name], stored.get_tensor(name).astype("float64")) for name in stored.keys()}  # noqa: SIM118
