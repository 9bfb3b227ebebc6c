"""The initial adapter: one safetensors file per (model shape, cell), loaded by every backend.

A is drawn as PEFT draws it (kaiming uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in))), B is zero, so the
model starts as the base model does. Each tensor has its own seed, made from the cell's seed and the tensor's name, so
neither order nor device matters; drawn on the CPU in float32.
"""

import hashlib
from pathlib import Path
from typing import Any

from bench.cache import cache_dir, publish_folder
from bench.cell import digest_of
from bench.errors import AuditError

FILE = "initial_adapter.safetensors"


def load_initial(model: Any, seed: int) -> str:
    """Fill every LoRA tensor of ``model`` from the shared file, which is made if missing; return the adapter's hash.

    Tensors that LoRA does not draw (DoRA magnitudes) keep the library's own initialisation.

    Raises:
        AuditError: the file and the model do not have the same LoRA tensors.
    """
    import torch
    from safetensors.torch import load_file, save_file

    targets = {_plain(name): p for name, p in model.named_parameters() if _is_lora(name)}
    if not targets:
        raise AuditError("the model has no LoRA tensors to initialise")
    shapes = {name: list(p.shape) for name, p in sorted(targets.items())}

    def build(folder: Path) -> None:
        save_file({name: _draw(name, shape, seed) for name, shape in shapes.items()}, folder / FILE)

    folder = publish_folder(build, cache_dir() / "adapters" / digest_of([seed, shapes]))
    stored = load_file(folder / FILE)
    with torch.no_grad():
        for name, parameter in targets.items():
            parameter.copy_(stored[name].to(parameter.dtype))
    return state_sha256({name: p for name, p in targets.items()})


def state_sha256(tensors: dict[str, Any]) -> str:
    """SHA-256 over names and values (as float32) of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _plain(name: str) -> str:
    """The tensor's name without wrappers that differ between libraries and versions."""
    return name.removeprefix("base_model.model.").replace("._orig_mod", "")


def _draw(name: str, shape: list[int], seed: int) -> Any:
    import torch

    if ".lora_B." in name:
        return torch.zeros(shape)
    own = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") >> 1
    bound = shape[1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=torch.Generator().manual_seed(own))
