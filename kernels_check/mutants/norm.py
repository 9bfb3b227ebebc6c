"""Faults in rms_layernorm.py, layernorm.py, and the block size that utils.py gives them."""

from kernels_check.mutants import mutants

ROOT = "    inv_var = tl.math.rsqrt(row_var + eps_f32)\n    tl.store(r, inv_var)\n    normed = X_row * inv_var\n"
LLAMA_ROOT = ROOT + "    normed = normed.to(W_row.dtype)"
GEMMA_ROOT = ROOT + "    output = normed * (W_row + 1.0)"
SQUARE = "    row_var = tl.sum(X_row * X_row, axis = 0) / n_cols"
LLAMA_MEAN = "    W_row = tl.load(W + col_offsets, mask = mask, other = 0)\n\n" + SQUARE
INPUT = "        X = X.reshape(-1, dim).contiguous()\n        # kernels read W"
GRADIENT = "        dY = dY.reshape(-1, dim).contiguous()\n        X, W, r = ctx.saved_tensors"
ROUNDED = "dW_acc += dY_row * normed.to(W.dtype.element_ty).to(tl.float32)"
TAIL = "for row_idx in range(row_start, tl.minimum(row_start + rows_per_program, n_rows)):"
FORWARD_ROWS = (
    "    rows = pid * ROWS + tl.arange(0, ROWS)\n    col_offsets = tl.arange(0, BLOCK_SIZE)\n"
    "    row_mask = rows < n_rows"
)
STORE_R = "    tl.store(r + rows, inv_var, mask = row_mask)\n"

RMS = mutants(
    "rms_layernorm.py",
    ("rms_layernorm",),
    [
        ("rms forward: no eps", LLAMA_ROOT, LLAMA_ROOT.replace("row_var + eps_f32", "row_var")),
        (
            "rms gemma forward: eps outside the root",
            GEMMA_ROOT,
            GEMMA_ROOT.replace("rsqrt(row_var + eps_f32)", "rsqrt(row_var) + eps_f32"),
        ),
        ("rms gemma forward: weight without its 1", GEMMA_ROOT, GEMMA_ROOT.replace("(W_row + 1.0)", "W_row")),
        ("rms forward: mean over the block", LLAMA_MEAN, LLAMA_MEAN.replace("/ n_cols", "/ BLOCK_SIZE")),
        (
            "rms forward: squares summed in the storage dtype",
            LLAMA_MEAN,
            LLAMA_MEAN.replace("X_row * X_row", "(X_row * X_row).to(W_row.dtype)").replace(
                "/ n_cols", ".to(tl.float32) / n_cols"
            ),
        ),
        (
            "rms backward: sign of the projection",
            "(n_cols * dY_W - normed * rowsum_dY_normed)",
            "(n_cols * dY_W + normed * rowsum_dY_normed)",
        ),
        ("rms backward: projection missing", "(n_cols * dY_W - normed * rowsum_dY_normed)", "(n_cols * dY_W)"),
        ("rms backward: scale", "inv_var / n_cols * (n_cols", "1.0 / n_cols * (n_cols"),
        ("rms gemma backward: weight without its 1", "dY_W = dY_row * (W_row + 1.0)", "dY_W = dY_row * W_row"),
        (
            "rms backward: projection in the storage dtype",
            "rowsum_dY_normed = tl.sum(dY_W * normed, axis = 0)",
            "rowsum_dY_normed = tl.sum((dY_W * normed).to(dX.dtype.element_ty), axis = 0).to(tl.float32)",
        ),
        (
            "rms backward: gemma's dw summed in the storage dtype",
            "dW_acc += dY_row * normed\n",
            "dW_acc = (dW_acc + dY_row * normed).to(W.dtype.element_ty).to(tl.float32)\n",
        ),
        (
            "rms backward: dw summed in the storage dtype",
            ROUNDED,
            "dW_acc = (dW_acc + dY_row * normed).to(W.dtype.element_ty).to(tl.float32)",
        ),
        (
            "rms backward: rows past the last",
            TAIL,
            TAIL.replace("tl.minimum(row_start + rows_per_program, n_rows)", "row_start + rows_per_program"),
        ),
        (
            "rms backward: last row of a program skipped",
            TAIL,
            TAIL.replace("+ rows_per_program,", "+ rows_per_program - 1,"),
        ),
        (
            "rms backward: rows of another program",
            "row_start = pid * rows_per_program\n        for row_idx",
            "row_start = pid\n        for row_idx",
        ),
        ("rms backward: dw of the first columns alone", "(_cdiv(n_cols, 64),)", "(max(1, n_cols // 64),)"),
        (
            "rms backward: one partial sum too many",
            "mask = (rows < n_programs)[:, None]",
            "mask = (rows <= n_programs)[:, None]",
        ),
        (
            "rms backward: only the first partial sums",
            "tl.range(0, n_programs, BLOCK_ROWS, num_stages = 3)",
            "tl.range(0, BLOCK_ROWS, BLOCK_ROWS, num_stages = 3)",
        ),
        ("rms: input not made contiguous", INPUT, INPUT.replace(".contiguous()", "")),
        ("rms: gradient not made contiguous", GRADIENT, GRADIENT.replace(".contiguous()", "")),
        (
            "rms backward: gradient overwritten",
            "dX = dY if ctx.reuse_grad and not ctx.GEMMA else",
            "dX = dY if True else",
        ),
        (
            "rms backward: dw not asked for",
            "train_w = ctx.needs_input_grad[1],\n                from_y = ctx.FROM_Y",
            "train_w = False,\n                from_y = ctx.FROM_Y",
        ),
        (
            "rms rows forward: rows of the next program",
            FORWARD_ROWS,
            FORWARD_ROWS.replace("pid * ROWS", "pid * BLOCK_SIZE"),
        ),
        ("rms rows forward: row mask one past", FORWARD_ROWS, FORWARD_ROWS.replace("rows < n_rows", "rows <= n_rows")),
        ("rms rows forward: no eps", "row_var + eps_f32)\n" + STORE_R, "row_var)\n" + STORE_R),
        ("rms rows: half the terms", "acc = tl.fma(a_lo, b_lo, a_hi * b_hi)", "acc = a_lo * b_lo"),
        (
            "rms rows backward: sign of the projection",
            "(n_cols * dY_W - normed * rowsum_dY_normed[:, None])",
            "(n_cols * dY_W + normed * rowsum_dY_normed[:, None])",
        ),
        ("rms rows backward: last block not summed", "tl.cdiv(n_rows, ROWS))", "n_rows // ROWS)"),
        ("rms rows backward: blocks of another program", "block_start = pid * blocks_per_program", "block_start = pid"),
        (
            "rms rows backward: row's own r",
            "inv_var = tl.load(r + rows, mask = row_mask",
            "inv_var = tl.load(r + rows * 0, mask = row_mask",
        ),
        (
            "rms backward: n not rounded for dw",
            ROUNDED,
            "dW_acc += dY_row * normed",
            "the exact n in place of the rounded one: dw loses roundings, which the bound allows and does not demand",
        ),
        (
            "rms: fewer programs",
            "_DW_PROGRAMS_PER_SM = 4\n",
            "_DW_PROGRAMS_PER_SM = 2\n",
            "how many programs share the rows: the same sums in another order",
        ),
    ],
)

CENTRED = "XX = tl.where(mask, X_row - mean_X, 0)"
SQUARES = "row_var = tl.sum(XX * XX, axis = 0) / n_cols"
GRAD = "dX_row = dY_W - tl.sum(dY_W, axis = 0) / n_cols - normed * tl.sum(dY_W * normed, axis = 0) / n_cols"
LAYERNORM = mutants(
    "layernorm.py",
    ("layernorm",),
    [
        ("layernorm forward: padding not masked", CENTRED, "XX = X_row - mean_X"),
        (
            "layernorm forward: one degree of freedom less",
            SQUARES,
            SQUARES.replace("n_cols", "tl.maximum(n_cols - 1, 1)"),
        ),
        (
            "layernorm forward: variance in one pass",
            SQUARES,
            "row_var = tl.sum(X_row * X_row, axis = 0) / n_cols - mean_X * mean_X",
        ),
        ("layernorm forward: no eps", "tl.math.rsqrt(row_var + eps_f32)", "tl.math.rsqrt(row_var)"),
        ("layernorm forward: sign of the bias", "output += tl.load(b", "output -= tl.load(b"),
        (
            "layernorm forward: mean in the storage dtype",
            "mean_X = tl.sum(X_row, axis = 0) / n_cols",
            "mean_X = (tl.sum(X_row, axis = 0) / n_cols).to(Y.dtype.element_ty).to(tl.float32)",
        ),
        (
            "layernorm backward: mean of the gradient missing",
            GRAD,
            GRAD.replace(" - tl.sum(dY_W, axis = 0) / n_cols", ""),
        ),
        ("layernorm backward: sign of the projection", GRAD, GRAD.replace("- normed", "+ normed")),
        (
            "layernorm backward: projection on the unweighted gradient",
            GRAD,
            GRAD.replace("dY_W * normed", "dY_row * normed"),
        ),
        ("layernorm backward: scale missing", "    dX_row = dX_row * inv_var\n", ""),
        (
            "layernorm backward: rows past the last",
            "tl.minimum(row_start + rows_per_program, n_rows)",
            "row_start + rows_per_program",
        ),
        (
            "layernorm backward: dw summed in the storage dtype",
            "dW_acc += dY_row * normed",
            "dW_acc = (dW_acc + dY_row * normed).to(W.dtype.element_ty).to(tl.float32)",
        ),
        (
            "layernorm backward: db of the next program",
            "tl.store(dB + pid * n_cols",
            "tl.store(dB + (pid + 1) % 2 * n_cols",
        ),
        (
            "layernorm backward: db reads dw's partial sums",
            "partials += which * n_programs * n_cols",
            "partials += which * 0",
        ),
        (
            "layernorm backward: only the first partial sums",
            "tl.range(0, n_programs, BLOCK_ROWS, num_stages = 3)",
            "tl.range(0, BLOCK_ROWS, BLOCK_ROWS, num_stages = 3)",
        ),
        ("layernorm backward: gradient overwritten", "dX = torch.empty_like(dY)", "dX = dY"),
        (
            "layernorm backward: another order of factors",
            "output = (XX * inv_var) * W_row",
            "output = (XX * W_row) * inv_var",
            "the same product; each order rounds twice",
        ),
    ],
)

SHARED = mutants(
    "utils.py",
    ("rms_layernorm", "layernorm", "cross_entropy"),
    [
        (
            "norms and loss: block of half the row",
            "BLOCK_SIZE: int = next_power_of_2(n)\n",
            "BLOCK_SIZE: int = max(1, next_power_of_2(n) // 2)\n",
        ),
    ],
)

MUTANTS = RMS + LAYERNORM + SHARED
