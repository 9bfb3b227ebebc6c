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
    "moe_grouped_gemm",
    "fp8",
    "nvfp4_products",
    "flex_attention",
)
"""The longest on a CPU first, so that the last process to end started early."""

GPU_PARTS = {
    "layernorm": 4, "rms_layernorm": 8, "rope": 5, "qk_norm_rope": 2, "cross_entropy": 5, "linear_cross_entropy": 2,
    "geglu": 3, "swiglu": 2, "nf4": 2, "int4_packed": 2, "large_head_attention": 3, "moe_grouped_gemm": 4, "fp8": 2,
    "flex_attention": 3,
}  # fmt: skip
"""Into how many processes a family's cases are divided on a GPU, where compiling takes the time: about one for 30
compiled kernels, or for one that PyTorch's compiler generates."""
GPU_FIRST = ("flex_attention", "large_head_attention", "moe_grouped_gemm")
"""Their processes start first on a GPU: a kernel takes longest to compile there."""

NO_CASE = {
    "fp8 by tensor memory accelerator": "no case: Unsloth takes it on Blackwell alone (compute capability 10); the "
    "kernel with pointers is checked (fp8)",
    "fp8 by other libraries": "no case: the products of fbgemm_gpu and torchao and torch._scaled_mm are not Unsloth's",
    "nvfp4 by Blackwell's instructions": "no case: Unsloth has none; its kernels multiply in 16 bits and are checked "
    "(nvfp4_products)",
    "moe_grouped_gemm, tuned": "no case: tuning times hundreds of settings of the kernels that are checked "
    "(moe_grouped_gemm)",
    "moe grouped products of unsloth_zoo": "no case yet: the kernels of moe_grouped_fp16.py and of the 4-bit experts",
    "attention with soft cap": "no case: PyTorch's compiler makes it of flex_attention.py's operations, and tunes the "
    "products for every shape",
    "flex_attention, other": "no case: over a shared prefix (off by default) and when decoding; training is checked "
    "(flex_attention)",
    "int4_packed, repacked": "no case: layouts for kernels of PyTorch (tinygemm) and vLLM (Marlin), not Unsloth's",
    "fast_lora with dropout or bias": "no case yet: dropout draws its mask on the device",
    "fused log-probabilities and divergences": "no case yet: the kernels of unsloth_zoo's fused_linear.py for "
    "reinforcement learning and distillation; its cross entropy is checked (linear_cross_entropy)",
    "NF4 by bitsandbytes' C functions": "no case: Unsloth takes them only where its own kernels are switched off "
    "(UNSLOTH_BNB_TRITON=0); they need CUDA",
}
"""What no case covers, on a CPU or a GPU, and why."""
