"""Model FLOPs of one optimizer step, and peak FLOP/s of known GPUs: what MFU is made of.

Conventions (one place; MFU elsewhere is step_flops / step seconds / peak):

- *Model* FLOPs as in PaLM (Chowdhery et al. 2022, appendix B): what the mathematics needs. Recomputation for gradient
  checkpointing is **not** counted, so checkpointing lowers MFU. Hardware FLOPs utilisation (HFU) would count it.
- A multiply-add is 2 FLOPs (Hoffmann et al. 2022 "Chinchilla", appendix F). Only matrix multiplications count: norms,
  rotary embedding, activations, softmax and biases do not. The embedding is a lookup: free. lm_head counts.
- Attention scores and weighted values count over the full square, without halving for the causal mask, as PaLM's
  12*L*H*Q*T does. A sliding-window layer counts at most its window of keys.
- Rows are taken as one sequence each: where packed examples do not attend to each other, attention is overcounted.
- Backward of a trained weight costs two forwards: one for the gradient of its input, one for its own. A frozen weight
  (LoRA, Hu et al. 2021, section 4.2; PEFT sets requires_grad=False) needs only the first: 4 FLOPs per weight and token
  in all instead of 6. The attention products have two operands and no frozen one: always 3 forwards.
- LoRA matrices cost r*(in + out) weights, trained: 6 each. DoRA's weight norms are done once a pass, not once a
  token, and are left out.
"""

from typing import Any

from bench.cell import Cell
from bench.errors import InputError

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED_MLP_DECODERS = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "granite", "olmo2", "phi3",
})  # fmt: skip
"""``model_type`` of dense decoders with q/k/v/o and gate/up/down projections. (phi3 fuses them: the same products.)"""

# Dense tensor-core FLOP/s with bf16 inputs and fp32 accumulation, without sparsity, at boost clock. Keys are NVML's
# product names, matched whole: a laptop part or another form factor is another chip.
PEAK_BF16_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989.4e12,  # NVIDIA H100 datasheet, SXM: 1,979 TFLOPS with sparsity
    "NVIDIA H100 PCIe": 756e12,  # NVIDIA H100 PCIe product brief: 1,513 TFLOPS with sparsity
    "NVIDIA H100 NVL": 835e12,  # NVIDIA H100 datasheet, NVL: 1,671 TFLOPS with sparsity
    "NVIDIA H200": 989.4e12,  # NVIDIA H200 datasheet, SXM: 1,979 TFLOPS with sparsity
    "NVIDIA A100-SXM4-40GB": 312e12,  # NVIDIA A100 datasheet
    "NVIDIA A100-SXM4-80GB": 312e12,  # NVIDIA A100 datasheet
    "NVIDIA A100-PCIE-40GB": 312e12,  # NVIDIA A100 datasheet
    "NVIDIA A100 80GB PCIe": 312e12,  # NVIDIA A100 datasheet
    "NVIDIA L4": 121e12,  # NVIDIA L4 datasheet: 242 TFLOPS with sparsity
    "NVIDIA L40": 181.05e12,  # NVIDIA L40 datasheet
    "NVIDIA L40S": 362.05e12,  # NVIDIA L40S datasheet
    "NVIDIA A10": 125e12,  # NVIDIA A10 datasheet
    "NVIDIA GeForce RTX 4090": 165.2e12,  # NVIDIA Ada architecture whitepaper, bf16 with fp32 accumulate
    "NVIDIA GeForce RTX 3090": 71e12,  # NVIDIA GA102 architecture whitepaper, bf16 with fp32 accumulate
    "Tesla T4": 65e12,  # NVIDIA T4 datasheet, fp16: Turing's tensor cores have no bf16
}


def peak_bf16_flops(gpu_name: str) -> float | None:
    """Dense peak of a GPU by its NVML name, FLOP/s; None for a GPU that is not in the table, never a guess."""
    return PEAK_BF16_FLOPS.get(gpu_name)


def step_flops(config: dict[str, Any], cell: Cell, tokens: int, sequence_length: int) -> float:
    """Model FLOPs of forward and backward over ``tokens`` positions (padding included) in rows of ``sequence_length``.

    ``config`` is a transformers config as a dict. The optimizer's own arithmetic is not counted.
    Raises InputError for an architecture whose matrix products are not known here, or an unknown target module.
    """
    config = config.get("text_config") or config
    _check_known(config)
    shapes, layers = linear_shapes(config), int(config["num_hidden_layers"])
    block = sum(n_in * n_out for n_in, n_out in shapes.values())
    head = int(config["hidden_size"]) * int(config["vocab_size"])
    matmul_weights = layers * block + head
    attention = 12 * attention_width(config) * sum(keys_per_query(config, sequence_length))

    if cell.method == "full":
        return float(tokens * (6 * matmul_weights + attention))
    lora_weights = layers * sum((cell.r or 0) * sum(shapes[name]) for name in _adapted(cell, shapes))
    return float(tokens * (4 * matmul_weights + 6 * lora_weights + attention))


def linear_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(in, out) of each linear module of one block."""
    hidden, mlp, queries = int(config["hidden_size"]), int(config["intermediate_size"]), attention_width(config)
    heads = int(config["num_attention_heads"])
    keys = queries * int(config.get("num_key_value_heads") or heads) // heads
    return {
        "q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys), "o_proj": (queries, hidden),
        "gate_proj": (hidden, mlp), "up_proj": (hidden, mlp), "down_proj": (mlp, hidden),
    }  # fmt: skip


def attention_width(config: dict[str, Any]) -> int:
    """Heads times head dimension: the width of the queries."""
    heads = int(config["num_attention_heads"])
    return heads * int(config.get("head_dim") or config["hidden_size"] // heads)


def keys_per_query(config: dict[str, Any], sequence_length: int) -> list[int]:
    """Keys that each query meets, layer by layer: the row, or the window where the layer slides."""
    layers, window = int(config["num_hidden_layers"]), config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return [sequence_length] * layers
    if types := config.get("layer_types"):
        slides = [kind == "sliding_attention" for kind in types]
    elif pattern := config.get("sliding_window_pattern"):
        slides = [(i + 1) % pattern != 0 for i in range(layers)]  # Gemma 3: every pattern-th layer is global
    else:
        slides = [i >= (config.get("max_window_layers") or 0) for i in range(layers)]  # Qwen2; Mistral: every layer
    return [min(sequence_length, int(window)) if slide else sequence_length for slide in slides]


def _adapted(cell: Cell, shapes: dict[str, tuple[int, int]]) -> tuple[str, ...]:
    """Names of the block's modules that carry an adapter; PEFT's all-linear leaves lm_head out."""
    if cell.target_modules == "all-linear":
        return tuple(shapes)
    if cell.target_modules == "attention":
        return ATTENTION_MODULES
    for name in cell.target_modules:
        if name not in shapes:
            raise InputError("target_modules", f"no FLOP count for {name!r}", f"known: {', '.join(shapes)}")
    return tuple(cell.target_modules)


def _check_known(config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    if kind not in GATED_MLP_DECODERS:
        known = ", ".join(sorted(GATED_MLP_DECODERS))
        raise InputError("config.model_type", f"no FLOP count for {kind!r}", f"known: {known}")
