"""What is refused before any probe runs, each with one clear error."""

import math

from bench import backends
from bench.environment import Environment
from bench.errors import InputError
from bench.limit.family import GIB, Family


def budget(vram_gib: float, backend: str, machine: Environment, index: int | None) -> int:
    """The budget in bytes. Raises InputError where no card can have it; only the fake backend does without a card."""
    where = f"--vram {vram_gib:g}"
    if not math.isfinite(vram_gib) or vram_gib <= 0:
        raise InputError(where, "a budget is a positive number of GiB", "give for example --vram 24")
    if index is None:
        if backend != "fake":
            raise InputError("peftmark limit", "needs an NVIDIA GPU, and NVML sees none here", "run `peftmark doctor`")
    elif vram_gib * GIB > machine.gpus[index].vram_bytes:
        has = machine.gpus[index].vram_bytes / GIB
        raise InputError(where, f"the card has {has:.1f} GiB ({machine.gpus[index].name})", "give a smaller budget")
    return int(vram_gib * GIB)


def runs_here(family: Family, machine: Environment) -> None:
    """Refuse a search whose cells cannot run on this machine."""
    if reason := backends.unsupported(family.at(family.grid[0]), machine):
        raise InputError(f"backend {family.base.backend!r}", reason, "run `peftmark doctor`")


def name(family: Family) -> str:
    """The search's name, which is its folder's: what it looks for, of what, in how much."""
    base, gib = family.base, (family.base.vram_budget_bytes or 0) / GIB
    model = base.model.rstrip("/").split("/")[-1].lower()
    fixed = {"max_length": f"r{base.r}-b{base.batch_size}", "batch_size": f"r{base.r}-l{base.max_length}",
             "r": f"b{base.batch_size}-l{base.max_length}"}[family.what]  # fmt: skip
    return f"{model}-{base.precision}-{base.backend}-{gib:g}gib-{family.what}-{fixed}"
