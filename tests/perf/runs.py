"""Run folders with many synthetic records, for tests of scale: as large as real ones, and written quickly.

A cell has ``REPEATS`` records of each backend; cells differ as a suite's axes would have them. Every seventh of the
candidate's cells ran out of memory. The numbers are made up (tests.synthetic).
"""

import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from bench.cell import Cell
from bench.environment import Package
from tests import synthetic

REPEATS = 4
STEPS = 30
PACKAGES = (
    "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "bitsandbytes", "lm-eval", "unsloth",
    "unsloth_zoo", "triton", "liger-kernel", "numpy", "nvidia-ml-py",
)  # fmt: skip
AXES: dict[str, tuple[Any, ...]] = {
    "learning_rate": tuple(1e-4 * (1 + n) for n in range(10)),
    "batch_size": (1, 2, 4, 8),
    "seed": (1, 2, 3),
    "model": ("llama-3.2-1b", "llama-3.1-8b", "smollm2-135m-instruct"),
    "precision": ("bf16", "nf4"),
    "r": (4, 8, 16, 32, 64),
    "max_length": (512, 1024, 2048, 4096),
}
BACKENDS = ("hf-peft", "unsloth")


def cells() -> Iterator[dict[str, Any]]:
    """The cells' settings without backend; the learning rate varies slowest."""
    for values in product(*AXES.values()):
        yield dict(zip(AXES, values, strict=True))


def write(folder: Path, count: int) -> Path:
    """A run folder with ``count`` records; the same ones each time."""
    rng = random.Random(0)
    environment = synthetic.environment()
    versions = {name: Package(version="1.2.3", source="index") for name in PACKAGES}
    environment = environment.model_copy(update={"packages": {**environment.packages, **versions}})
    whole = synthetic.record(step_s=(1.0,) * (STEPS - len(synthetic.UNTIMED_S)), env=environment)
    ended = synthetic.unfinished("unsloth", "oom", "CUDA out of memory. Tried to allocate 2.00 GiB", env=environment)
    contents = {"ok": whole.model_dump(mode="json"), "oom": ended.model_dump(mode="json")}
    number = 0
    for place, setting in enumerate(cells()):
        for backend in BACKENDS:
            cell = Cell(backend=backend, max_steps=STEPS, untimed_steps=len(synthetic.UNTIMED_S), **setting)
            content = contents["oom" if backend == "unsloth" and place % 7 == 6 else "ok"]
            content |= {"cell": cell.model_dump(mode="json"), "cell_digest": cell.digest}
            for repeat in range(REPEATS):
                if number == count:
                    return folder
                steps = content["steps"]
                speed = (1.5 if backend == "unsloth" else 1.0) * rng.gauss(1, 0.01)
                walls = [*synthetic.UNTIMED_S, *(rng.gauss(1, 0.02) / speed for _ in range(STEPS - 2))]
                losses = [2 - 0.01 * step + rng.gauss(0, 0.001) for step in range(STEPS)]
                steps = {**steps, "wall_s": walls, "loss": losses} if steps["wall_s"] else steps
                id = f"20260101T{number:06d}.000000Z-{cell.digest[:8]}-0000"
                target = folder / "records" / cell.slug / id
                target.mkdir(parents=True)
                text = json.dumps({**content, "id": id, "repeat": repeat, "steps": steps}, indent=1)
                (target / "record.json").write_text(text)
                number += 1
    raise ValueError(f"{count} records: the axes give {number}")
