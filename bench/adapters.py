"""The adapters that every backend loads from one safetensors file: the initial one, and that of the gradient probe.

A is drawn as PEFT draws it (kaiming uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in))), B is zero, so the
model starts as the base model does. The probe's adapter has a B as well, in U(-0.1/sqrt(r), 0.1/sqrt(r)): its output
is about 3 % of its input, so the model stays near the base model and no gradient is zero by construction. Its values
are exact in bf16, since libraries differ in the dtype they keep adapters in.

Each tensor has its own seed, made from the cell's seed and the tensor's name, so neither order nor device matters;
drawn on the CPU in float32.
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
        AuditError: the model has no LoRA tensors.
    """
    return state_sha256(_load(model, seed, probe=False))


def load_probe(model: Any, seed: int, undrawn: dict[str, Any]) -> None:
    """Fill every LoRA tensor with the probe's adapter, and put back the ``undrawn`` ones.

    Raises:
        AuditError: the model has no LoRA tensors.
    """
    import torch

    _load(model, seed, probe=True)
    with torch.no_grad():
        for name, parameter in tensors(model).items():
            if name in undrawn:
                parameter.copy_(undrawn[name].to(parameter.dtype))


def tensors(model: Any) -> dict[str, Any]:
    """The trainable adapter tensors by canonical name."""
    return {canonical(n): p for n, p in model.named_parameters() if "lora_" in n and p.requires_grad}


def undrawn(model: Any) -> dict[str, Any]:
    """Copies, on the CPU, of the adapter tensors that the shared file does not hold (DoRA magnitudes)."""
    return {n: p.detach().cpu().clone() for n, p in tensors(model).items() if not _is_lora(n)}


def _load(model: Any, seed: int, *, probe: bool) -> dict[str, Any]:
    """The LoRA tensors by canonical name, filled from the file."""
    import torch
    from safetensors.torch import load_file, save_file

    targets = {canonical(name): p for name, p in model.named_parameters() if _is_lora(name)}
    if not targets:
        raise AuditError("the model has no LoRA tensors to initialise")
    shapes = {name: list(p.shape) for name, p in sorted(targets.items())}

    def build(folder: Path) -> None:
        save_file({name: _draw(name, shape, seed, probe) for name, shape in shapes.items()}, folder / FILE)

    key = [seed, shapes, "probe"] if probe else [seed, shapes]
    folder = publish_folder(build, cache_dir() / "adapters" / digest_of(key))
    stored = load_file(folder / FILE)
    with torch.no_grad():
        for name, parameter in targets.items():
            parameter.copy_(stored[name].to(parameter.dtype))
    return targets


def canonical(name: str) -> str:
    """The tensor's name without wrappers that differ between libraries and versions."""
    return name.removeprefix("base_model.model.").replace("._orig_mod", "")


def state_sha256(tensors: dict[str, Any]) -> str:
    """SHA-256 over names and values (as float32) of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _draw(name: str, shape: list[int], seed: int, probe: bool) -> Any:
    import torch

    is_b = ".lora_B." in name
    if is_b and not probe:
        return torch.zeros(shape)
    own = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") >> 1
    bound = shape[1] ** -0.5 * (0.1 if is_b else 1.0)
    drawn = torch.empty(shape).uniform_(-bound, bound, generator=torch.Generator().manual_seed(own))
    return drawn.bfloat16().float() if probe else drawn
