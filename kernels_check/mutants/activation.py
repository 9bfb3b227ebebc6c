"""Faults in swiglu.py and geglu.py."""

from kernels_check.mutants import mutants

FORWARD_MASK = (
    "    mask = offsets < n_elements\n\n    e_row = tl.load(e + offsets, mask = mask, other = 0).to(tl.float32)\n"
)
FORWARD_OFFSETS = "        offsets = block_idx * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)\n" + FORWARD_MASK
FORWARD_GRID = (
    '    grid = lambda meta: (triton.cdiv(n_elements, meta["BLOCK_SIZE"]),)\n'
    "    with torch_gpu_device(e.device):\n        _fg"
)
BACKWARD_MASK = "    mask = offsets < n_elements\n\n    DW_row"
STORES = "    tl.store(e + offsets, df_row, mask = mask)\n    tl.store(g + offsets, de_row, mask = mask)"
SWAPPED = "    tl.store(e + offsets, de_row, mask = mask)\n    tl.store(g + offsets, df_row, mask = mask)"
MORE_EXACT = "h loses one rounding to the storage dtype, which the bound allows and does not demand"

SWIGLU = mutants(
    "swiglu.py",
    ("swiglu",),
    [
        ("swiglu forward: mask one short", FORWARD_MASK, FORWARD_MASK.replace("n_elements", "n_elements - 1")),
        (
            "swiglu forward: blocks overlap by one",
            FORWARD_OFFSETS,
            FORWARD_OFFSETS.replace("block_idx * BLOCK_SIZE", "block_idx * (BLOCK_SIZE - 1)"),
        ),
        (
            "swiglu forward: last block not launched",
            FORWARD_GRID,
            FORWARD_GRID.replace("triton.cdiv(n_elements, ", "max(1, n_elements // "),
        ),
        ("swiglu forward: sigmoid without e", "f_row = e_row * tl.sigmoid(e_row)", "f_row = tl.sigmoid(e_row)"),
        ("swiglu forward: mask one past", FORWARD_MASK, FORWARD_MASK.replace("<", "<=")),
        ("swiglu backward: mask one past", BACKWARD_MASK, BACKWARD_MASK.replace("<", "<=")),
        ("swiglu backward: sign of the exponent", "se_row = tl.sigmoid(e_row)", "se_row = tl.sigmoid(-e_row)"),
        ("swiglu backward: slope's last term", "(1.0 + e_row * (1.0 - se_row))", "(1.0 + e_row * se_row)"),
        (
            "swiglu backward: slope without sigmoid",
            "dg_row.to(tl.float32) * se_row * (1.0",
            "dg_row.to(tl.float32) * (1.0",
        ),
        (
            "swiglu backward: sigmoid in the storage dtype",
            "se_row = tl.sigmoid(e_row)",
            "se_row = tl.sigmoid(e_row).to(DW_row.dtype).to(tl.float32)",
        ),
        ("swiglu backward: gradients swapped", STORES, SWAPPED),
        ("swiglu forward: f not rounded", "    f_row = f_row.to(g_row.dtype)  # Exact copy from HF\n", "", MORE_EXACT),
        (
            "swiglu: half the block",
            "BLOCK_SIZE = 1024",
            "BLOCK_SIZE = 512",
            "every element is computed alone: the block decides only which program computes it",
        ),
    ],
)

EXACT = "0.5 * e_row * (tl.math.erf(tl.math.rsqrt(2.0) * e_row) + 1.0)"
CUBE = "0.5 * e_row * (triton_tanh(s * e_row * (1.0 + 0.044715 * e_row * e_row)) + 1.0)"
GEGLU = mutants(
    "geglu.py",
    ("geglu",),
    [
        ("geglu exact forward: erf's scale", EXACT, EXACT.replace("tl.math.rsqrt(2.0) * ", "")),
        ("geglu exact backward: sign of the density", "f_partial_row + t * e_row", "f_partial_row - t * e_row"),
        ("geglu exact backward: density without e", "t * e_row * tl.exp(", "t * tl.exp("),
        ("geglu exact backward: density's exponent", "tl.exp(-0.5 * e_row * e_row)", "tl.exp(-e_row * e_row)"),
        ("geglu exact backward: constant of five digits", "t = 0.3989422804014327", "t = 0.39894"),
        ("geglu exact backward: scale of f", "f_partial_row = 0.5 * (", "f_partial_row = ("),
        ("geglu approximate forward: coefficient", CUBE, CUBE.replace("0.044715", "0.044175")),
        (
            "geglu approximate forward: square in place of cube",
            CUBE,
            CUBE.replace("0.044715 * e_row * e_row", "0.044715 * e_row"),
        ),
        (
            "geglu approximate backward: factor of the cube's slope",
            "(T - 2.0) * (a + 3.0 * b)\n",
            "(T - 2.0) * (a + 2.0 * b)\n",
        ),
        ("geglu approximate backward: sign", "Q2 = -T2", "Q2 = T2"),
        (
            "geglu approximate backward: tanh in the storage dtype",
            "T2 = 0.5 * T\n",
            "T2 = 0.5 * T.to(DW_row.dtype).to(tl.float32)\n",
        ),
        ("geglu approximate backward: missing term", "df_de = T2 + Q2", "df_de = T2"),
        (
            "geglu approximate backward: another order of factors",
            "b = a * 0.044715 * e_row * e_row",
            "b = (0.044715 * a) * (e_row * e_row)",
            "the same product; each order rounds three times",
        ),
    ],
)

MUTANTS = SWIGLU + GEGLU
