"""A checkpoint with a real architecture and random weights, written shard by shard.

Speed and memory do not depend on the values of the weights; accuracy does, so such a model is marked in every record.
Matrices are normal with the configuration's ``initializer_range``, norms are at their own identity, biases zero. Each
tensor has its own seed, from the cell's seed and the tensor's name, so the values depend on no order. The generators
of CPU and GPU differ: the same seed on the same kind of device gives the same bytes. Always bf16, as published weights.
"""

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import InputError, StoreError
from bench.models.files import SHARD_INDEX, require_free
from bench.models.tokenizer import BYTES_AND_SPECIALS, small_tokenizer

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 2 * 2**30
DISK_MARGIN_BYTES = 64 * 2**20


def device_type() -> str:
    """Where random values are drawn: ``cuda`` when there is a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def write(folder: Path, config: dict[str, Any], *, seed: int, trust_remote_code: bool, where: str) -> None:
    """Fill ``folder`` with config.json, safetensors, tokenizer and generation_config.json; ``where`` names the model.

    Raises InputError when the disk is too small or the vocabulary cannot hold the tokenizer, StoreError when the disk
    fills up on the way.
    """
    import torch

    vocabulary = int(config.get("text_config", config).get("vocab_size", 0))
    if vocabulary < BYTES_AND_SPECIALS:
        raise InputError(
            where,
            f"vocab_size {vocabulary} is too small for the tokenizer of random weights",
            f"use at least {BYTES_AND_SPECIALS}",
        )
    tokenizer = small_tokenizer(vocabulary)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = config | ids | {"torch_dtype": "bfloat16"}
    if "text_config" in config:
        config["text_config"] = config["text_config"] | ids

    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
    tokenizer.save_pretrained(folder)

    tensors = _Tensors(_meta_model(folder, trust_remote_code, where), config, seed)
    require_free(folder, tensors.total_bytes + DISK_MARGIN_BYTES, where)
    write_shards(folder, tensors, tensors.total_bytes, where)
    if tensors.device == "cuda":  # leave nothing that a measurement in this process would count
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def write_shards(folder: Path, tensors: "Iterable[tuple[str, torch.Tensor]]", total_bytes: int, where: str) -> None:
    """Save (name, tensor) pairs as safetensors in the layout of ``save_pretrained``, one shard in memory at a time."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    single = total_bytes <= SHARD_BYTES
    try:
        for number, shard in enumerate(_grouped(tensors), start=1):
            name = "model.safetensors" if single else f"model-{number:05d}.safetensors"
            save_file(shard, folder / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, name)
            shard.clear()
        if not single:
            index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
            (folder / SHARD_INDEX).write_text(json.dumps(index, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise StoreError(f"{where}: the disk filled up while writing {total_bytes / 2**30:.1f} GiB") from error
        raise


def _grouped(tensors: "Iterable[tuple[str, torch.Tensor]]") -> "Iterator[dict[str, torch.Tensor]]":
    """Shards of at most ``SHARD_BYTES``, or of one tensor that is larger; the caller clears each after use."""
    shard: dict[str, Any] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _meta_model(folder: Path, trust_remote_code: bool, where: str) -> Any:
    """The model of the folder's config.json without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise InputError(
            where, f"transformers cannot build the model: {error}", "check model_type in its config.json"
        ) from error


class _Tensors:
    """Iterates over (name, CPU tensor) of a meta model, drawing each when its turn comes; tied tensors appear once."""

    def __init__(self, model: Any, config: dict[str, Any], seed: int) -> None:
        import torch

        self.seed, self.device = seed, device_type()
        self.std = float(config.get("text_config", config).get("initializer_range", 0.02))
        unique: dict[int, tuple[str, torch.Tensor]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            unique.setdefault(id(tensor), (name, tensor))
        self.shapes = {name: tuple(tensor.shape) for name, tensor in unique.values()}
        self.norms = {
            f"{name}.weight": _norm_identity(module)
            for name, module in model.named_modules()
            if type(module).__name__.endswith("Norm") and getattr(module, "weight", None) is not None
        }
        self.total_bytes = 2 * sum(tensor.numel() for _, tensor in unique.values())

    def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]":
        for name in self.shapes:
            yield name, self._draw(name)

    def _draw(self, name: str) -> "torch.Tensor":
        import torch

        shape = self.shapes[name]
        if name in self.norms:
            return torch.full(shape, self.norms[name], dtype=torch.bfloat16)
        if name.endswith("bias"):
            return torch.zeros(shape, dtype=torch.bfloat16)
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}:{name}".encode()).digest()[:8]) >> 1
        generator = torch.Generator(self.device).manual_seed(seed)
        drawn = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        return drawn.normal_(0.0, self.std, generator=generator).cpu()


def _norm_identity(module: Any) -> float:
    """The weight that a fresh norm of this class has: 1, or 0 where the class multiplies by (1 + weight) as Gemma's."""
    return float(type(module)(1).weight.item())
