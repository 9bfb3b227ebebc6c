"""What the experiments share: the model as the harness loads it, adapters as the harness draws them, and a clock."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import adapters
from bench.cell import Cell
from bench.clock import synchronise


def cell(settings: dict[str, Any]) -> Cell:
    """The cell that names the experiment's model, rank and precision."""
    known = {name: settings[name] for name in ("model", "source", "r", "precision") if name in settings}
    return Cell.model_validate({"precision": "fp32"} | known)


def device_name() -> str:
    """What the samples were taken on."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def base_model(settings: dict[str, Any]) -> tuple[Any, Path]:
    """The base model in evaluation mode on the device, and its folder; downloaded or made if it is not there."""
    from transformers import AutoModelForCausalLM

    from bench.models.sources import resolve
    from bench.training import compute_dtype, device

    wanted = cell(settings)
    folder = resolve(wanted, offline=False).folder
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=compute_dtype(wanted), device_map={"": device()}, use_safetensors=True
    )
    return model.eval(), folder


def with_adapter(model: Any, r: int, *, seed: int | None) -> Any:
    """The model with a LoRA adapter on all linear layers of its blocks; with ``seed`` both A and B are drawn.

    The drawn adapter's output is about 3 % of its input (see ``bench.adapters``).
    """
    from peft import LoraConfig, get_peft_model

    from bench.training import target_modules

    wanted = Cell(model="any", r=r)
    config = LoraConfig(r=r, lora_alpha=r, target_modules=target_modules(wanted, model), task_type="CAUSAL_LM")
    made = get_peft_model(model, config).eval()
    if seed is not None:
        adapters.load_probe(made, seed, {})
    return made


def tokens(model: Any, rows: int, length: int) -> Any:
    """Token ids of shape (rows, length), the same in every process."""
    import torch

    drawn = torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    return drawn.to(model.device)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the call, the device synchronised at both ends, and what it returned."""
    synchronise()
    start = time.monotonic()
    result = call()
    synchronise()
    return time.monotonic() - start, result


def distance(one: Any, other: Any) -> float:
    """Norm of the difference over the norm of ``other``, in float64 on the CPU."""
    a, b = one.double().cpu(), other.double().cpu()
    return float((a - b).norm() / b.norm())


def tolerance(model: Any, precision: str) -> float:
    """Relative distance that rounding alone may make between two correct forward passes (see ``bench.rounding``)."""
    from bench.rounding import Rounding

    config = model.config
    inner = max(config.hidden_size, config.intermediate_size)
    return Rounding.of(precision, config.num_hidden_layers, inner).loss(1)


def safetensors_bytes(folder: Path) -> dict[str, int]:
    """Size of the safetensors files of a folder, and of the tensors in them (the rest is the files' header)."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    tensors = 0
    for file in files:
        with safe_open(file, "pt") as content:
            tensors += sum(content.get_tensor(name).nbytes for name in content.keys())  # noqa: SIM118
    return {"file_bytes": sum(file.stat().st_size for file in files), "tensor_bytes": tensors}
