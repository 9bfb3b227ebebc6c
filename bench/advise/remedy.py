"""Where nothing fits: the nearest changes that would."""

from itertools import combinations
from typing import Any

from bench.advise.fit import Fit
from bench.advise.gpus import table
from bench.advise.question import Asked, Model, fits
from bench.advise.shapes import shape_of
from bench.models import catalogue


def changes_that_fit(asked: Asked, fit: Fit, r: int) -> list[str]:
    """The fewest changes that would fit, then the smallest GPU and the largest model."""
    changes: list[tuple[str, dict[str, Any]]] = [
        ("batch 1", {"batch": 1}),
        ("precision nf4", {"precision": "nf4"}),
        ("backend unsloth", {"backends": ("unsloth",)}),
        ("sequences of 1024", {"sequence": min(1024, asked.sequence)}),
        ("sequences of 512", {"sequence": min(512, asked.sequence)}),
    ]  # fmt: skip
    changes = [(told, new) for told, new in changes if any(getattr(asked, name) != v for name, v in new.items())]
    found: list[str] = []
    for size in (1, 2, 3, 4):
        for chosen in combinations(changes, size):
            update: dict[str, Any] = {}
            for _, new in chosen:
                update |= new
            changed = asked.model_copy(update=update)
            if len(update) == size and any(fits(changed, fit, b, r) for b in changed.backends):
                found.append(" and ".join(told for told, _ in chosen) + f", at r {r}")
        if found:
            break
    bigger = sorted((g for g in table().values() if g.bf16), key=lambda g: (g.memory_mib, g.name))
    for gpu in bigger:
        if any(fits(asked.model_copy(update={"gpu": gpu}), fit, b, r) for b in asked.backends):
            found.append(f"a GPU of {gpu.memory_mib / 1024:.0f} GiB such as {gpu.name}")
            break
    smaller = sorted(catalogue.catalogue().values(), key=lambda e: -e.published_parameters)
    for entry in smaller:
        if entry.published_parameters >= asked.model.shape.parameters:
            continue
        model = Model(name=entry.name, source="random", config=entry.config, shape=shape_of(entry.config))
        if any(fits(asked.model_copy(update={"model": model}), fit, b, r) for b in asked.backends):
            found.append(f"model {entry.name}, the largest of the catalogue that fits as asked")
            break
    return found or ["nothing in the tables: neither fewer tokens nor a larger GPU is enough"]
