"""What training keeps and writes after one step: bytes of gradients, AdamW's state and checkpoint, by method."""

import tempfile
from pathlib import Path
from typing import Any

from bench.claims.experiments import parts


def measure(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One entry for ``lora`` and one for ``full``; bytes."""
    lora = parts.with_adapter(parts.base_model(settings)[0], settings["r"], seed=None)
    methods = {"lora": _step(lora, settings["tokens"])}
    del lora
    methods["full"] = _step(parts.base_model(settings)[0], settings["tokens"])
    return {"device": parts.device_name(), "methods": methods}


def _step(model: Any, length: int) -> dict[str, int]:
    """One forward, backward and AdamW step over the trainable parameters."""
    import torch

    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    ids = parts.tokens(model, 1, length)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    state = [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, torch.Tensor)]
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        checkpoint = parts.safetensors_bytes(Path(scratch))["file_bytes"]
    return {
        "trainable_parameters": sum(p.numel() for p in trained),
        "weight_bytes": sum(p.nbytes for p in model.parameters()),
        "gradient_bytes": sum(p.grad.nbytes for p in trained if p.grad is not None),
        "optimizer_state_bytes": sum(t.nbytes for t in state),
        "checkpoint_bytes": checkpoint,
    }
