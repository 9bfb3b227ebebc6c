"""Faults in fast_lora.py and in the product with a low-rank update of utils.py."""

from kernels_check.mutants import mutants

FAMILY = ("fast_lora",)

MUTANTS = mutants(
    "fast_lora.py",
    FAMILY,
    [
        (
            "lora mlp backward: another module's scale",
            "d_upA.addmm_(Xd.t(), up_dB, alpha = upS",
            "d_upA.addmm_(Xd.t(), up_dB, alpha = gateS",
        ),
        (
            "lora mlp backward: gradients of gate and up swapped",
            "up_dB = df @ upB.t()\n        gate_dB = de @ gateB.t()",
            "up_dB = de @ upB.t()\n        gate_dB = df @ gateB.t()",
        ),
        (
            "lora mlp backward: gate's update missing in dx",
            "        _add_lora_dX(dX, gate_dB, gateA, gateS, gate_mask, gate_p)\n",
            "",
        ),
        (
            "lora mlp backward: gate's base missing in dx",
            "        addmm_(dX, de, gateW.t())\n",
            "",
        ),
        (
            "lora mlp backward: down's b without its scale",
            "d_downB.addmm_(downA.t() @ h.t(), dY, alpha = downS",
            "d_downB.addmm_(downA.t() @ h.t(), dY, alpha = 1.0",
        ),
        (
            "lora qkv backward: another module's scale",
            "_add_lora_dX(dX, k_dB, KA, KS, K_mask, K_p)",
            "_add_lora_dX(dX, k_dB, KA, QS, K_mask, K_p)",
        ),
        (
            "lora qkv backward: values' gradient of another",
            "d_VB.addmm_(VA.t() @ Xd.t(), dV, alpha = VS",
            "d_VB.addmm_(VA.t() @ Xd.t(), dV, alpha = -VS",
        ),
        ("lora qkv backward: values' base missing in dx", "        addmm_(dX, dV, VW.t())\n", ""),
        (
            "lora o backward: a without its scale",
            "d_A.addmm_(Xd.t(), y_dB, alpha = S",
            "d_A.addmm_(Xd.t(), y_dB, alpha = 1.0",
        ),
        ("lora o backward: update missing in dx", "        _add_lora_dX(dX, y_dB, A, S, mask, ctx.dropout_p)\n", ""),
    ],
) + mutants(
    "utils.py",
    FAMILY,
    [
        (
            "lora: scale missing",
            "XA = torch_matmul(X, A.to(dtype))\n        addmm_(out, XA, B.to(dtype), alpha = s)",
            "XA = torch_matmul(X, A.to(dtype))\n        addmm_(out, XA, B.to(dtype), alpha = 1.0)",
        ),
        (
            "lora: scale applied before the second product",
            "XA = torch_matmul(X, A.to(dtype))\n        addmm_(out, XA, B.to(dtype), alpha = s)",
            "XA = torch_matmul(X, A.to(dtype))\n        addmm_(out, XA * s, B.to(dtype))",
            "the same product where s is a power of two; elsewhere one rounding of X A^T more, of the size of its own",
        ),
    ],
)
