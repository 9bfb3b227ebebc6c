"""Where materialised things live (models, data, adapters), and how a folder appears there whole or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """Root of the cache: ``PEFTMARK_CACHE``, else ``~/.cache/peftmark``; made when missing."""
    root = Path(os.environ.get("PEFTMARK_CACHE") or Path.home() / ".cache" / "peftmark")
    root.mkdir(parents=True, exist_ok=True)
    return root


def kept_bytecode() -> dict[str, str]:
    """Variables with which a fresh process keeps what it compiles where ``PYTHONDONTWRITEBYTECODE`` forbids it.

    Container images often set that, and then each process compiles all it imports again: of transformers, PEFT and TRL
    that is more than half of their import. It goes into the cache; nothing is written beside the packages.
    """
    if not os.environ.get("PYTHONDONTWRITEBYTECODE"):
        return {}
    prefix = os.environ.get("PYTHONPYCACHEPREFIX") or str(cache_dir() / "bytecode")
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": prefix}


def publish_folder(build: Callable[[Path], None], target: Path) -> Path:
    """Return ``target``, built if it is not there: ``build`` fills a temporary sibling that is renamed into place.

    Two processes may race; the first rename wins and the other's work is thrown away. A failed build leaves nothing.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        build(draft)
        draft.chmod(0o755)
        draft.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
