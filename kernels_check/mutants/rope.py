"""Faults in rope_embedding.py."""

from kernels_check.mutants import mutants

KEYS = "            ko_head_stride,\n            ko_dim_stride,\n            batch_id,\n            seq_index,\n"
BACKWARD = "                rope_ptr,\n                ctx.has_indices,\n                True,\n"

MUTANTS = mutants(
    "rope_embedding.py",
    ("rope",),
    [
        ("rope: sign of the sine", "out0 = tl.fma(x0, c, -(x1 * s))", "out0 = tl.fma(x0, c, x1 * s)"),
        ("rope: second half's terms swapped", "out1 = tl.fma(x0, s, x1 * c)", "out1 = tl.fma(x0, c, x1 * s)"),
        ("rope backward: turned the same way", "        sin1 = -sin1\n", "        sin1 = sin1\n"),
        ("rope backward: second half's terms swapped", "out1 = tl.fma(x1, c, x0 * s)", "out1 = tl.fma(x0, c, x1 * s)"),
        ("rope backward with positions: turned the same way", BACKWARD, BACKWARD.replace("True", "False")),
        ("rope: second half at the block", "x_ptr + half_head_dim * x_dim_stride", "x_ptr + BLOCK_SIZE * x_dim_stride"),
        (
            "rope: columns not masked",
            "(heads[:, None] < n_heads) & (cols[None, :] < half_head_dim)",
            "(heads[:, None] < n_heads) & (cols[None, :] < BLOCK_SIZE)",
        ),
        ("rope: one head too many", "(heads[:, None] < n_heads)", "(heads[:, None] <= n_heads)"),
        ("rope: query heads by the keys' group", "            group * HEADS_Q,\n", "            group * HEADS_K,\n"),
        (
            "rope: key heads by the queries' group",
            "(group - n_groups_Q) * HEADS_K",
            "(group - n_groups_Q) * HEADS_Q",
            "keys have no more heads than queries: where they need a second group, both tiles are full and of one size",
        ),
        ("rope: groups of key heads not counted from the first", "(group - n_groups_Q) * HEADS_K", "group * HEADS_K"),
        ("rope: key heads of the first group alone", "(group - n_groups_Q) * HEADS_K", "0"),
        ("rope: keys begin one group late", "if group < n_groups_Q:", "if group <= n_groups_Q:"),
        (
            "rope: last group of heads not launched",
            "n_groups_Q = (n_heads_Q + HEADS_Q - 1) // HEADS_Q",
            "n_groups_Q = n_heads_Q // HEADS_Q",
        ),
        ("rope: place in the batch as position", "rot_position = row_position % seqlen", "rot_position = row_position"),
        (
            "rope: row of another batch",
            "seq_index = row_position - batch_id * seqlen",
            "seq_index = row_position - batch_id * (seqlen - 1)",
        ),
        (
            "rope: positions of the first sequence",
            "rope_embedding_indices + row_position,",
            "rope_embedding_indices + row_position % seqlen,",
        ),
        (
            "rope: stride of the other table",
            "cos + rot_position * cos_row_stride",
            "cos + rot_position * sin_row_stride",
        ),
        (
            "rope: stride of the input for the output",
            "        K_out.stride(0),\n        K_out.stride(2),",
            "        K_out.stride(0),\n        K.stride(2),",
        ),
        (
            "rope: keys by the queries' batch stride",
            "        K.stride(0),\n        K.stride(2),\n",
            "        Q.stride(0),\n        K.stride(2),\n",
        ),
        (
            "rope: sine in 8 bits less",
            "    sin1 = tl.load(sin + rot_position * sin_row_stride + col_offsets, mask = mask, other = 0)",
            "    sin1 = tl.load(sin + rot_position * sin_row_stride + col_offsets, mask = mask, other = 0)\n"
            "    sin1 = sin1.to(tl.float16).to(sin1.dtype)",
        ),
        (
            "rope: smaller tiles",
            "ROPE_TILE_ELEMENTS: int = 1024",
            "ROPE_TILE_ELEMENTS: int = 512",
            "how many heads a program turns: every element is computed alone",
        ),
        (
            "rope: other product fused",
            "out0 = tl.fma(x0, c, -(x1 * s))",
            "out0 = tl.fma(-x1, s, x0 * c)",
            "the same two products; which of them is rounded before the sum is free",
        ),
    ],
)
