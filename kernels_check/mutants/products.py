"""Faults in the kernels that are made for a GPU's small floats and for mixtures of experts."""

from kernels_check.mutants import mutants

GROUPED = "moe/grouped_gemm"

MUTANTS = (
    mutants(
        "fp8.py",
        ("fp8",),
        [
            (
                "fp8 activations: largest, not largest magnitude",
                "s = tl.max(tl.abs(x)) / 448.0",
                "s = tl.max(x) / 448.0",
            ),
            ("fp8 few rows: a block of zeros divided by zero", "        a_s = tl.where(a_s == 0, 1.0, a_s)\n", ""),
            (
                "fp8 product: last column missing",
                "b = tl.load(b_ptrs, mask = offs_k[:, None] < K - k * BLOCK_SIZE_K, other = 0.0)",
                "b = tl.load(b_ptrs, mask = offs_k[:, None] < K - k * BLOCK_SIZE_K - 1, other = 0.0)",
            ),
            (
                "fp8 product: first block's activation scale for all",
                "a_s = tl.load(As_ptrs + offs_ks * stride_As_k)",
                "a_s = tl.load(As_ptrs)",
            ),
            (
                "fp8 rows: first part of the sum missing",
                "for k in tl.static_range(SPLIT_K):",
                "for k in tl.static_range(1, SPLIT_K):",
            ),
            (
                "fp8 product: larger tiles",
                "BLOCK_SIZE_M = max(triton.next_power_of_2(M), 16)",
                "BLOCK_SIZE_M = max(triton.next_power_of_2(M), 32)",
                "rows past the last are masked",
            ),
        ],
    )
    + mutants(
        "nvfp4.py",
        ("nvfp4_products",),
        [
            (
                "nvfp4 product: second part of the sum missing",
                "for i in tl.static_range(1, SPLIT):",
                "for i in tl.static_range(2, SPLIT):",
            ),
            (
                "nvfp4 product: multiplied by the global scale",
                "group_scale = tl.math.div_rn(scale, global_scale)",
                "group_scale = scale * global_scale",
            ),
        ],
    )
    + mutants(
        f"{GROUPED}/kernels/forward.py",
        ("moe_grouped_gemm",),
        [
            ("experts forward: tiles left out", "tidx += NUM_SMS", "tidx += NUM_SMS + 1"),
            (
                "experts forward: another token's row",
                "(expert_token_offsets // TOPK) * K",
                "(expert_token_offsets % NUM_TOKENS) * K",
            ),
            (
                "experts forward: the expert's weight before",
                "n_start = expert_idx.to(tl.int64) * N",
                "n_start = tl.maximum(expert_idx - 1, 0).to(tl.int64) * N",
            ),
            (
                "experts forward: weight added",
                "y *= topk_weights.to(output_dtype)",
                "y += topk_weights.to(output_dtype)",
            ),
        ],
    )
    + mutants(
        f"{GROUPED}/kernels/backward.py",
        ("moe_grouped_gemm",),
        [
            ("experts dx: weight advances by a row", "w_ptrs += BLOCK_SIZE_N * K", "w_ptrs += BLOCK_SIZE_N"),
            (
                "experts dW: starts past its own rows",
                "m_start = tl.sum(tl.where(e_range < expert_idx, sizes, 0), axis = 0)",
                "m_start = tl.sum(tl.where(e_range <= expert_idx, sizes, 0), axis = 0)",
            ),
            (
                "experts older dW: gradient not permuted",
                "dY_row_load_idx = expert_token_offsets * N",
                "dY_row_load_idx = m_offsets[:, None] * N",
            ),
        ],
    )
    + mutants(
        f"{GROUPED}/interface.py",
        ("moe_grouped_gemm",),
        [
            (
                "experts dx: mean of a token's rows",
                "dX = dX.view(X.shape[0], topk, -1).sum(dim = 1)",
                "dX = dX.view(X.shape[0], topk, -1).mean(dim = 1)",
            ),
        ],
    )
)
