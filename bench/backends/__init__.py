"""Backends by name. Adding one is a file here and a line in ``_FACTORIES``; see CONTRIBUTING.md.

Factories import their module only when asked for it, so planning and reporting never load torch.
"""

from collections.abc import Callable
from importlib import import_module

from bench.backends.base import Backend
from bench.cell import Cell
from bench.environment import Environment
from bench.errors import InputError, nearest

_FACTORIES: dict[str, tuple[str, str]] = {
    "hf-peft": ("bench.backends.hf_peft", "HfPeft"),
    "hf-peft-no-upcast": ("bench.backends.hf_variants", "NoUpcast"),
    "hf-peft+liger": ("bench.backends.hf_variants", "Liger"),
    "hf-peft+compile": ("bench.backends.hf_variants", "Compiled"),
    "hf-peft+compile-blocks": ("bench.backends.hf_variants", "CompiledBlocks"),
    "hf-peft-no-upcast+liger": ("bench.backends.hf_variants", "NoUpcastLiger"),
    "hf-peft+liger+compile": ("bench.backends.hf_variants", "LigerCompiled"),
    "hf-peft-no-upcast+liger+compile": ("bench.backends.hf_variants", "NoUpcastLigerCompiled"),
    "hf-peft+liger+compile-blocks": ("bench.backends.hf_variants", "LigerCompiledBlocks"),
    "hf-peft-no-upcast+liger+compile-blocks": ("bench.backends.hf_variants", "NoUpcastLigerCompiledBlocks"),
    "unsloth": ("bench.backends.unsloth", "Unsloth"),
    "fake": ("bench.backends.fake", "Fake"),
}


def names() -> list[str]:
    """Every registered backend."""
    return list(_FACTORIES)


def get(name: str) -> Backend:
    """The backend of that name; an unknown one is an InputError with the nearest name."""
    if name not in _FACTORIES:
        raise InputError(f"backend {name!r}", "no such backend", nearest(name, names()))
    module, cls = _FACTORIES[name]
    make: Callable[[], Backend] = getattr(import_module(module), cls)
    return make()


def unsupported(cell: Cell, machine: Environment) -> str | None:
    """Why the cell's backend cannot run it on this machine, as far as planning can know; None where it can."""
    return get(cell.backend).unsupported(cell, machine)
