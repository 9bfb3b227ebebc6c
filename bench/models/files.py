"""A model folder on disk: what it must hold, and the hashes that name it."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.cache import cache_dir, sha256_file
from bench.cell import digest_of
from bench.errors import InputError

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
SHARD_INDEX = "model.safetensors.index.json"


def read_config(folder: Path, where: str) -> dict[str, Any]:
    """The folder's ``config.json``; InputError when it is missing or no JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(where, "there is no config.json in the folder", "give a folder that holds a whole model")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(where, f"config.json is not JSON: {error}", "copy the model again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(where, "config.json has no 'model_type'", "give the folder of a transformers model")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that ``from_pretrained`` reads, sorted by name; those an index names, else all."""
    index = folder / SHARD_INDEX
    if index.is_file() and not (folder / "model.safetensors").exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated"))


def check_loadable(folder: Path, where: str) -> None:
    """InputError that names what a whole model folder lacks: config, safetensors, a shard, or the tokenizer."""
    read_config(folder, where)
    weights = weight_files(folder)
    if not weights:
        other = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
        raise InputError(
            where,
            "there are no safetensors files" + (f" (only {', '.join(other)})" if other else ""),
            "convert the weights with save_pretrained of transformers; peftmark reads safetensors only",
        )
    if missing := [p.name for p in weights if not p.exists()]:
        raise InputError(where, f"{SHARD_INDEX} names {', '.join(missing)}, which is missing", "copy the model again")
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise InputError(where, "there is no tokenizer", f"add its files ({' or '.join(VOCABULARIES[:2])}, ...)")


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the SHA-256 of each safetensors file, sorted by name.

    Kept under the cache, keyed by path, size and time of change of the files, so that a large model is read once.
    """
    files = [path.resolve() for path in weight_files(folder)]
    key = digest_of([[str(p), (stat := p.stat()).st_size, stat.st_mtime_ns] for p in files])
    sidecar = cache_dir() / "models" / "hashes" / f"{key}.txt"
    if sidecar.is_file():
        return sidecar.read_text().strip()
    digest = _combined(sha256_file(path) for path in files)
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    draft = sidecar.with_suffix(f".{os.getpid()}")
    draft.write_text(digest + "\n")
    draft.replace(sidecar)
    return digest


def tokenizer_sha256(folder: Path) -> str:
    """SHA-256 over the name and SHA-256 of each tokenizer file that is there, the chat template included."""
    present = (name for name in TOKENIZER_FILES if (folder / name).is_file())
    return _combined(f"{name} {sha256_file(folder / name)}" for name in present)


def _combined(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def require_free(folder: Path, needed_bytes: int, what: str) -> None:
    """InputError with needed and free GiB when the file system of ``folder`` cannot take ``needed_bytes``."""
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise InputError(
            what,
            f"needs {needed_bytes / 2**30:.1f} GiB of disk, and {free_bytes / 2**30:.1f} GiB are free in {folder}",
            "free some space, choose a smaller model, or point PEFTMARK_CACHE at a larger disk",
        )
