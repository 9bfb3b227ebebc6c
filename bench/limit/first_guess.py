"""Where a search starts: a rough count of the bytes that a step takes, from the model's configuration alone.

Only the number of probes depends on it, never the result. Set right by a probe's measured peak (``scale``), it says
where the next probe goes. All terms are bytes:

- base weights: blocks at the precision's width (nf4 with double quantisation: 4.127 bits, QLoRA paper section 3), the
  embedding and a separate head at 16 bits, or at 32 where PEFT's preparation casts them;
- adapter: r * (in + out) values a module, kept with gradient in fp32, and the optimizer's two states (8 or 32 bits);
- activations a token: with checkpointing one 16-bit residual a layer is kept (Unsloth's kind moves it to the host), and
  one layer is recomputed at a time; without, every layer keeps all. A layer keeps about its inputs and outputs of each
  linear module; twice that with their gradients;
- the head: the last hidden state and its gradient in fp32. Logits are taken in chunks by both sides.
"""

from typing import Any

from bench.cell import Cell
from bench.flops import ATTENTION_MODULES, linear_shapes

WEIGHT_BYTES = {"nf4": 4.127 / 8, "int8": 1.0, "bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
CONTEXT_BYTES = 0.75 * 2**30
"""CUDA's context and libraries, as in the published H100 runs."""


def need_bytes(config: dict[str, Any], cell: Cell, scale: float = 1.0) -> float:
    """GPU memory that a step of the cell takes, roughly; ``scale`` multiplies what grows with rank and tokens."""
    config = config.get("text_config") or config
    return fixed_bytes(config, cell) + scale * growing_bytes(config, cell)


def fixed_bytes(config: dict[str, Any], cell: Cell) -> float:
    """Base weights and context."""
    config = config.get("text_config") or config
    block = sum(n_in * n_out for n_in, n_out in linear_shapes(config).values())
    upcast = (
        cell.precision in ("nf4", "int8") and cell.backend.startswith("hf-peft") and "no-upcast" not in cell.backend
    )
    wide = 4.0 if upcast or cell.precision == "fp32" else 2.0
    tables = 1 if config.get("tie_word_embeddings", False) else 2
    embeddings = tables * int(config["vocab_size"]) * int(config["hidden_size"]) * wide
    return CONTEXT_BYTES + int(config["num_hidden_layers"]) * block * WEIGHT_BYTES[cell.precision] + embeddings


def growing_bytes(config: dict[str, Any], cell: Cell) -> float:
    """Adapter with gradient and optimizer, and activations."""
    config = config.get("text_config") or config
    shapes, layers, hidden = linear_shapes(config), int(config["num_hidden_layers"]), int(config["hidden_size"])
    names = {"all-linear": tuple(shapes), "attention": ATTENTION_MODULES}.get(str(cell.target_modules), tuple(shapes))
    rank = cell.r or 0
    adapter = layers * rank * sum(sum(shapes[name]) for name in names)
    states = 2 if cell.optimizer == "adamw_8bit" else 8
    layer = 2 * sum(n_in + n_out + rank for n_in, n_out in shapes.values())
    checkpointing = cell.gradient_checkpointing
    if checkpointing == "auto":
        checkpointing = "unsloth" if cell.backend == "unsloth" else "on"
    kept = {"off": layers * layer, "on": layers * 2 * hidden, "unsloth": 0}[checkpointing]
    tokens = cell.batch_size * cell.max_length
    return adapter * (8 + states) + tokens * (kept + 2 * layer + 8 * hidden)
