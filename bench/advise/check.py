"""The suite file that would check an advice on its GPU."""

import yaml

from bench.advise.advice import RANKS, Advice
from bench.advise.question import cell


def suite_text(advice: Advice) -> str:
    """A suite file that checks the advice on that GPU: the recommended cell, and the next size that should not fit."""
    asked, chosen = advice.asked, advice.recommended
    backends = [chosen.backend] if chosen else list(asked.backends)
    r = chosen.r if chosen else RANKS[0]
    made = cell(asked, backends[0], r)
    axes = ("backend", "r", "max_length", "batch_size")
    recipe = {
        name: value for name, value in made.model_dump(mode="json", exclude_defaults=True).items() if name not in axes
    }
    rows = [{"backend": b, "r": r, "max_length": asked.sequence, "batch_size": asked.batch} for b in backends]
    edges = []
    for row in rows:
        largest = advice.largest_batch[str(row["backend"])]
        edges += [row | {"batch_size": size} for size in (largest, 2 * largest) if size not in (0, asked.batch)]
    suite = {
        "name": f"check-{asked.gpu.name}",
        "description": f"Checks advice for {asked.model.name} on {asked.gpu.name}: the rank advised, the largest batch "
        "said to fit, and twice that.",
        "timeout_s": 1800,
        "recipe": recipe,
        "include": rows + edges,
    }  # fmt: skip
    return yaml.safe_dump(suite, sort_keys=False, width=120)
