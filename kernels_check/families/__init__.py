"""The kernel families: one module each, with ``cases()`` returning its Cases.

A family's module is imported only in the process that runs it.
"""

FAMILIES = (
    "layernorm",
    "rms_layernorm",
    "rope",
    "qk_norm_rope",
    "cross_entropy",
    "linear_cross_entropy",
    "geglu",
    "fast_lora",
    "nf4",
    "swiglu",
    "mean_cross_entropy",
    "int4_packed",
    "rms_layernorm_options",
    "float_weights",
    "large_head_attention",
    "rope_decoding",
    "lora_decoding",
)
"""The longest first, so that the last process to end started early."""

NO_CASE = {
    "fp8 matrix products": "no case yet: GEMM and GEMV of fp8.py and the quantisation of activations, which need a "
    "GPU's float8 instructions; reading the weights is checked (float_weights)",
    "nvfp4 matrix products": "no case yet: the fused products of nvfp4.py; reading the weights is checked "
    "(float_weights)",
    "moe_grouped_gemm": "no case yet: its interface refuses CPU tensors, and it needs autotuning and, on Hopper, "
    "tensor descriptors",
    "flex_attention": "no case: PyTorch generates the kernel, Unsloth only chooses the mask",
    "int4_packed, repacked": "no case: layouts for kernels of PyTorch (tinygemm) and vLLM (Marlin), not Unsloth's",
    "fast_lora with dropout or bias": "no case yet: dropout draws its mask on the device",
    "fused log-probabilities and divergences": "no case yet: the kernels of unsloth_zoo's fused_linear.py for "
    "reinforcement learning and distillation; its cross entropy is checked (linear_cross_entropy)",
    "NF4 by bitsandbytes' C functions": "no case: Unsloth takes them only where its own kernels are switched off "
    "(UNSLOTH_BNB_TRITON=0); they need CUDA",
}
"""What no case covers, on a CPU or a GPU, and why."""
