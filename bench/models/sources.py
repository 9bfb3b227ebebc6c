"""Where a cell's model comes from: hub, local folder, packaged, or random weights; always a folder in the end.

The folder loads with ``AutoModelForCausalLM`` and ``AutoTokenizer`` without a network: config.json, safetensors and
tokenizer files. Weights in other formats are refused, since they can run code.
"""

import errno
import json
from pathlib import Path
from typing import Any, Literal

from bench.cache import cache_dir, publish_folder, sha256_file
from bench.cell import Cell, Frozen, digest_of
from bench.errors import InputError, StoreError, nearest
from bench.models import catalogue, packaged, random_weights
from bench.models.files import check_loadable, read_config, tokenizer_sha256, weights_sha256

HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
HUB_IGNORED = ["*/*", "consolidated*"]  # other formats in subfolders; Mistral's second copy of the weights


class ModelPath(Frozen):
    """A model folder that is ready to load, and what a record says of it."""

    folder: Path
    weights: Literal["real", "random"]
    source_detail: str
    """Hub id and revision; package and version; seed and device; or a local folder's name."""
    config_sha256: str
    weights_sha256: str | None
    """Over the safetensors files; None for random weights, which seed and device name."""
    tokenizer_sha256: str


def resolve(cell: Cell, *, offline: bool = False) -> ModelPath:
    """The cell's model as a folder; downloaded, converted or drawn when it is not in the cache yet.

    Raises InputError that names the model and the mend when it cannot be had, StoreError when the disk fills up.
    """
    if cell.source == "random":
        return _random(cell)
    if cell.source == "packaged":
        _packaged_entry(cell.model)
        folder, detail = packaged.folder(offline=offline), packaged.SOURCE_DETAIL
    elif cell.source == "local":
        folder, detail = _local_folder(cell.model), f"local folder {Path(cell.model).resolve().name}"
    else:
        folder, detail = _hub_folder(cell, offline=offline)
    check_loadable(folder, _where(cell))
    return _described(folder, detail, weights_sha256(folder))


def config_for(cell: Cell) -> dict[str, Any] | None:
    """The model's configuration without weights, network or torch; None when it is not known here yet.

    Raises InputError for a name that cannot be right: a misspelt catalogue name, a missing folder.
    """
    if cell.source == "packaged":
        return _packaged_entry(cell.model).config
    if cell.source == "local":
        return read_config(_local_folder(cell.model), _where(cell))
    if cell.source == "random":
        return _architecture(cell)[0]
    repository = _repository(cell.model)
    if known := catalogue.find(repository):
        return known.config
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repository, "config.json")
    return json.loads(Path(cached).read_text()) if isinstance(cached, str) else None


def _where(cell: Cell) -> str:
    return f"model {cell.model!r}, source {cell.source!r}"


def _described(folder: Path, detail: str, weights_hash: str | None) -> ModelPath:
    return ModelPath(
        folder=folder,
        weights="real" if weights_hash else "random",
        source_detail=detail,
        config_sha256=sha256_file(folder / "config.json"),
        weights_sha256=weights_hash,
        tokenizer_sha256=tokenizer_sha256(folder),
    )


def _packaged_entry(model: str) -> catalogue.Entry:
    found = catalogue.find(model)
    if found is None or found.name != packaged.MODEL:
        raise InputError(
            f"model {model!r}, source 'packaged'",
            f"only {packaged.MODEL} comes as a package",
            f"use model {packaged.MODEL}, or another source (hub, local, random)",
        )
    return found


def _local_folder(model: str) -> Path:
    folder = Path(model).expanduser()
    if not folder.is_dir():
        hint = "; for a catalogue name use source hub or random" if catalogue.find(model) else ""
        raise InputError(f"model {model!r}, source 'local'", "there is no such folder", f"check the path{hint}")
    return folder


def _architecture(cell: Cell) -> tuple[dict[str, Any], str]:
    """Configuration and name of a random model's architecture: from the catalogue, or a folder's config.json."""
    if known := catalogue.find(cell.model):
        return known.config, known.hub_id
    folder = Path(cell.model).expanduser()
    if folder.is_dir():
        return read_config(folder, _where(cell)), f"local folder {folder.resolve().name}"
    raise InputError(
        _where(cell),
        "neither a catalogue name nor a folder with a config.json",
        nearest(cell.model.lower(), list(catalogue.catalogue())),
    )


def _random(cell: Cell) -> ModelPath:
    config, architecture = _architecture(cell)
    device = random_weights.device_type()
    label = architecture.rsplit("/", 1)[-1].rsplit(" ", 1)[-1].lower()
    name = f"{label}-{digest_of(config)[:8]}-seed{cell.seed}-{device}"
    folder = publish_folder(
        lambda draft: random_weights.write(
            draft, config, seed=cell.seed, trust_remote_code=cell.trust_remote_code, where=_where(cell)
        ),
        cache_dir() / "models" / "random" / name,
    )
    return _described(
        folder, f"random weights, seed {cell.seed}, drawn on {device}; architecture: {architecture}", None
    )


def _repository(model: str) -> str:
    """Hub id of a catalogue name or an owner/name id."""
    if known := catalogue.find(model):
        return known.hub_id
    if model.count("/") != 1:
        raise InputError(
            f"model {model!r}, source 'hub'",
            "neither a catalogue name nor a Hugging Face id (owner/name)",
            nearest(model.lower(), list(catalogue.catalogue())),
        )
    return model


def _hub_folder(cell: Cell, *, offline: bool) -> tuple[Path, str]:
    """Snapshot folder and "id@revision"; hub errors become InputError with the mend that fits each."""
    import httpx
    from huggingface_hub import errors, snapshot_download

    repository = _repository(cell.model)
    where = f"model {cell.model!r} ({repository} on the hub)"
    others = "use source 'local' with a copy of it, or 'random' for speed and memory alone"
    try:
        snapshot = snapshot_download(
            repository,
            allow_patterns=[*HUB_FILES, "*.py"] if cell.trust_remote_code else HUB_FILES,
            ignore_patterns=HUB_IGNORED,
            local_files_only=offline,
        )
    except errors.GatedRepoError as error:
        mend = f"accept its licence on its page, then run 'hf auth login'; or {others}"
        raise InputError(where, "its owner asks for a login and an accepted licence", mend) from error
    except errors.RepositoryNotFoundError as error:
        near = nearest(cell.model.lower(), list(catalogue.catalogue()))
        mend = f"check the id ({near}); if it is private, run 'hf auth login'"
        raise InputError(where, "the hub knows no such model", mend) from error
    except errors.HFValidationError as error:
        raise InputError(where, f"not a valid hub id: {error}", "write it as owner/name") from error
    except errors.LocalEntryNotFoundError as error:
        if offline:
            what, mend = "not in the local cache, and offline runs download nothing", "run 'peftmark fetch' online"
        else:
            what, mend = "the hub cannot be reached, and the model is not in the local cache", "check the network"
        raise InputError(where, what, f"{mend}, or {others}") from error
    except httpx.HTTPError as error:  # HfHubHTTPError is one of them
        what = f"the download failed: {str(error).splitlines()[0]}"
        raise InputError(where, what, f"try again, or {others}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StoreError(f"{where}: the disk filled up during the download") from error
        raise
    return Path(snapshot), f"{repository}@{Path(snapshot).name}"
