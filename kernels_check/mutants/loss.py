"""Faults in cross_entropy_loss.py."""

from kernels_check.mutants import mutants

NEGATIVE = '-float("inf")'
REMASKED = f"        logits = tl.where(mask, logits, {NEGATIVE})\n\n    c = tl.max(logits, 0)\n"
UNMASKED = "        logits = logits\n\n    c = tl.max(logits, 0)\n"
EMPTY_CHUNK = f"    c = tl.where(c == {NEGATIVE}, 0.0, c)\n"
PLAIN_LABEL = "            x = SOFTCAP * triton_tanh(x / SOFTCAP)\n        # lse - x"
CHUNKED_SCALE = "            if DO_LOGIT_SCALING:\n                x = LOGIT_SCALE * x\n"
CONFIDENT = "        logsumexp = c + tl.log(sum_others + tl.exp(x - c))\n    else"

MUTANTS = mutants(
    "cross_entropy_loss.py",
    ("cross_entropy",),
    [
        ("loss: padding not masked after the cap", REMASKED + "    # One", UNMASKED + "    # One"),
        ("loss chunked: padding not masked after the cap", REMASKED + "    # All", UNMASKED + "    # All"),
        ("loss chunked: chunk of -inf alone", EMPTY_CHUNK, ""),
        (
            "loss: label counted twice",
            "tl.sum(tl.where(col_offsets == label_idx, 0.0, tl.exp(logits - c)), 0)",
            "tl.sum(tl.exp(logits - c), 0)",
        ),
        (
            "loss: exponentials summed in the storage dtype",
            "tl.where(col_offsets == label_idx, 0.0, tl.exp(logits - c)), 0)",
            "tl.where(col_offsets == label_idx, 0.0, tl.exp(logits - c)).to(logits_ptr.dtype.element_ty), 0)"
            ".to(tl.float32)",
        ),
        ("loss: sum without the label", CONFIDENT, CONFIDENT.replace(" + tl.exp(x - c)", "")),
        (
            "loss: exponent not shifted",
            "0.0, tl.exp(logits - c)), 0)\n    logsumexp = c + tl.log(sum_others)",
            "0.0, tl.exp(logits)), 0)\n    logsumexp = tl.log(sum_others)",
        ),
        (
            "loss: rounded for confident labels",
            "loss = _softplus(logsumexp - x)",
            "loss = c + tl.log(sum_others + tl.exp(x - c)) - x",
        ),
        ("loss: log1p without its correction", "tl.log(u) * (x / (u - 1.0))", "tl.log(u)"),
        ("loss: cap missing at the label", PLAIN_LABEL, PLAIN_LABEL.replace("SOFTCAP * triton_tanh(x / SOFTCAP)", "x")),
        (
            "loss: cap's inverse",
            "logits = SOFTCAP * triton_tanh(logits / SOFTCAP)\n    if DO_LOGIT_SCALING or DO_SOFTCAPPING:\n"
            "        # Either transform makes the -inf padding finite: -SOFTCAP via tanh, +inf via a negative scale.\n"
            + REMASKED
            + "    # One",
            "logits = SOFTCAP * triton_tanh(logits * SOFTCAP)\n    if DO_LOGIT_SCALING or DO_SOFTCAPPING:\n"
            + REMASKED
            + "    # One",
        ),
        (
            "loss: label's row",
            "    labels_ptr += row_idx\n\n    col_offsets = tl.arange",
            "    labels_ptr += 0\n\n    col_offsets = tl.arange",
        ),
        (
            "loss chunked: label's chunk one too wide",
            "(label_idx < (chunk_idx + 1) * BLOCK_SIZE)",
            "(label_idx <= (chunk_idx + 1) * BLOCK_SIZE)",
        ),
        (
            "loss chunked: label's chunk one short",
            "(label_idx >= chunk_idx * BLOCK_SIZE)",
            "(label_idx > chunk_idx * BLOCK_SIZE)",
        ),
        (
            "loss chunked: last chunk not launched",
            "            n_chunks = div + (mod != 0)\n",
            "            n_chunks = div\n",
        ),
        (
            "loss chunked: chunk's place",
            "logsumexp_ptr += row_idx * N_CHUNKS + chunk_idx\n    logsumexp_others",
            "logsumexp_ptr += row_idx + chunk_idx\n    logsumexp_others",
        ),
        ("loss chunked: scale missing at the label", CHUNKED_SCALE, ""),
        (
            "loss chunked: padding labels counted",
            "losses = losses.masked_fill(labels == -100, 0)  # mask padding out",
            "pass",
        ),
        (
            "loss chunked: first chunk's sum alone",
            "logsumexp = torch.logsumexp(logsumexp, dim = 1)",
            "logsumexp = logsumexp[:, 0].contiguous()",
        ),
        (
            "loss backward: mask one short",
            "mask = col_offsets < VOCAB_SIZE\n    label_idx = tl.load(labels_ptr + row_idx)",
            "mask = col_offsets < VOCAB_SIZE - 1\n    label_idx = tl.load(labels_ptr + row_idx)",
        ),
        ("loss backward: first block alone", "col_offsets = block_idx * BLOCK_SIZE", "col_offsets = block_idx * 0"),
        (
            "loss backward: stride of the incoming gradient",
            "dloss_ptr += row_idx * dloss_row_stride",
            "dloss_ptr += row_idx",
        ),
        (
            "loss backward: padding labels counted",
            "    if label_idx != -100:\n        dloss = tl.load(dloss_ptr)",
            "    if True:\n        dloss = tl.load(dloss_ptr)",
        ),
        (
            "loss backward: rounded for confident labels",
            "return tl.where(x < 1.0, near_zero, u - 1.0)",
            "return u - 1.0",
        ),
        (
            "loss backward: Kahan's trick past its range",
            "return tl.where(x < 1.0, near_zero, u - 1.0)",
            "return near_zero",
        ),
        ("loss backward: label's 1 missing", "        _expm1_neg(loss),", "        tl.exp(-loss),"),
        ("loss backward: scale missing", "        y = y * LOGIT_SCALE\n", "        y = y\n"),
        ("loss backward: cap's slope", "y = y * (1.0 - partial * partial)", "y = y * (1.0 - partial)"),
        (
            "loss backward: probability in the storage dtype",
            "y = tl.exp(x - logsumexp)\n",
            "y = tl.exp(x - logsumexp).to(dlogits_ptr.dtype.element_ty).to(tl.float32)\n",
        ),
        ("loss backward: logits overwritten", "dlogits = torch.empty_like(logits)", "dlogits = logits"),
        ("loss: logits not made contiguous", "        logits = logits.contiguous()\n", ""),
        (
            "loss backward: half the block",
            "BLOCK_SIZE: int = 4096",
            "BLOCK_SIZE: int = 2048",
            "every element is computed alone: the block decides only which program computes it",
        ),
        (
            "loss chunked: half the chunk",
            "    return MAX_FUSED_SIZE, (16",
            "    return MAX_FUSED_SIZE // 2, (16",
            "how a row is divided: the same sum in another order",
        ),
    ],
)
