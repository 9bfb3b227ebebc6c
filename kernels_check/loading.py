"""Imports single kernel modules of Unsloth and Liger without the packages' own initialisation.

Importing ``unsloth`` patches transformers, trl and peft and takes half a minute; its kernel modules need none of that.
Their packages are therefore registered bare: a name and a folder. Releases whose whole package no longer imports beside
today's libraries can be checked this way too.
"""

import importlib
import importlib.util
import re
import sys
import types
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

BARE = (
    "unsloth", "unsloth.kernels", "unsloth.utils", "unsloth.models",
    "unsloth_zoo", "unsloth_zoo.temporary_patches",
    "liger_kernel", "liger_kernel.ops",
)  # fmt: skip
DISTRIBUTIONS = {"unsloth": "unsloth", "unsloth_zoo": "unsloth_zoo", "liger_kernel": "liger-kernel"}


class Missing(Exception):
    """This release, or this machine, does not have what a case needs; the message says what."""


def folder_of(package: str) -> Path | None:
    """Where a top-level package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def register_bare_packages() -> None:
    """Make ``import unsloth.kernels.x`` run x alone. Once, in a fresh process."""
    for name in BARE:
        top, *rest = name.split(".")
        found = folder_of(top) if not rest else Path(sys.modules[top].__path__[0]) if top in sys.modules else None
        folder = found.joinpath(*rest) if found else None
        if folder is None or not folder.is_dir():
            continue
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__spec__.submodule_search_locations = module.__path__
        module.__dict__["__getattr__"] = _device_constants(name)
        sys.modules[name] = module
        if rest:
            setattr(sys.modules[name.rpartition(".")[0]], rest[-1], module)


def _device_constants(package: str) -> Any:
    """``from unsloth import DEVICE_TYPE`` in kernel modules: read from the package's device_type module, which older
    releases lack; there it is the kind of device that this check has."""

    def get(name: str) -> Any:
        if not name.startswith(("DEVICE_", "ALLOW_")):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(f"{package}.device_type"), name)
        except (ImportError, AttributeError):
            return {"DEVICE_TYPE": "cuda", "DEVICE_COUNT": 1}.get(name)

    return get


def unsloth(module: str, *names: str) -> Any:
    """``unsloth.kernels.<module>``, or the named attribute(s) of it; Missing where the release lacks them."""
    return _get(f"unsloth.kernels.{module}", names)


def unsloth_zoo(module: str, *names: str) -> Any:
    """``unsloth_zoo.<module>``, or the named attribute(s) of it; Missing where the release lacks them."""
    return _get(f"unsloth_zoo.{module}", names)


def liger(module: str, *names: str) -> Any:
    """``liger_kernel.ops.<module>``, or the named attribute(s) of it; Missing where the release lacks them."""
    return _get(f"liger_kernel.ops.{module}", names)


def _get(path: str, names: tuple[str, ...]) -> Any:
    package = path.partition(".")[0]
    if package not in sys.modules:
        raise Missing(f"{package} is not installed")
    try:
        loaded = importlib.import_module(path)
    except Exception as error:  # whatever a release's module raises beside today's libraries
        raise Missing(f"{package} {version(package)}: {path} cannot be imported: {error}") from error
    absent = [name for name in names if not hasattr(loaded, name)]
    if absent:
        raise Missing(f"{package} {version(package)}: {path} has no {', '.join(absent)}")
    found = tuple(getattr(loaded, name) for name in names)
    return loaded if not found else found[0] if len(found) == 1 else found


def version(package: str) -> str | None:
    """Version of the copy of ``package`` that is found first on the path."""
    folder = folder_of(package)
    if folder is None:
        return None
    for distribution in metadata.distributions(name=DISTRIBUTIONS.get(package, package), path=[str(folder.parent)]):
        return distribution.version
    for file in ("models/_utils.py", "__init__.py"):
        path = folder / file
        if path.is_file() and (found := re.search(r'^__version__\s*=\s*"([^"]+)"', path.read_text("utf-8"), re.M)):
            return found.group(1)
    return None
