"""The tiny models of the whole-model check, their inputs, and what must be seen to run."""

from dataclasses import dataclass, field
from typing import Any

DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY, TOKENS = 2, 160, 232, 173, (2, 13)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA, IGNORED, SEED = 4, 6, -100, 0
B_SCALE = 0.1
"""Standard deviation of B's entries."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One tiny architecture, and what must be seen to run."""

    config: str
    module: str
    """Unsloth's module whose forward the attention must have."""
    kernels: tuple[str, ...]
    fused: tuple[str, ...]
    """Launched besides where LoRA is fused."""
    options: dict[str, Any] = field(default_factory=dict)


SWIGLU = ("_fg_kernel", "_DWf_DW_dfg_kernel")
NORM = ("_rms_layernorm_forward", "_rms_layernorm_backward")
SHAPES = {
    "llama": Shape(
        config="LlamaConfig", module="unsloth.models.llama", kernels=(*NORM, "_rope_embedding_QK"), fused=SWIGLU
    ),
    "qwen3": Shape(
        config="Qwen3Config", module="unsloth.models.qwen3", kernels=(*NORM, "_rope_embedding_QK"), fused=SWIGLU,
        options={"head_dim": 32},
    ),
    "gemma": Shape(
        config="GemmaConfig", module="unsloth.models.llama",
        kernels=("_gemma_rms_layernorm_forward", "_rms_layernorm_backward", "_rope_embedding_QK"),
        fused=("_approx_forward_kernel", "_approx_backward_kernel"), options={"head_dim": 48},
    ),
}  # fmt: skip
