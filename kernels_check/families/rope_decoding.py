"""Rotary embedding in place, as inference calls it: ``decode_rope_inplace`` for one token of every sequence in one
kernel, and ``inplace_rope_embedding``, which is made of PyTorch's own operations. Formula and source: see ``rope``.
"""

from dataclasses import replace
from functools import partial

from kernels_check import loading
from kernels_check.case import TWO_DTYPES, Candidate, Case, Inputs, Results
from kernels_check.families import rope
from kernels_check.families.rope import Variant


def cases() -> list[Case]:
    """One token with positions by the kernel; several by PyTorch's operations, with gradients."""
    token = Variant(name="one token", batch=3, length=1, heads=(5, 2), positions=True)
    variants = [
        token,
        replace(token, name="one token, dense", layout="dense", dtypes=TWO_DTYPES),
        replace(token, name="one token, wide head", width=160, heads=(9, 1), dtypes=TWO_DTYPES),
    ]
    decoding = Candidate(call=_unsloth_decoding, kernels=("_rope_embedding_QK",), overwrites=("Q", "K"))
    made = [_case(variant, {"unsloth": decoding}, ()) for variant in variants]
    several = Variant(name="several tokens", positions=True, heads=(3, 1), dtypes=TWO_DTYPES)
    return [*made, _case(several, {"unsloth, PyTorch": Candidate(call=_unsloth_in_place, kernels=())}, ("Q", "K"))]


def _case(variant: Variant, candidates: dict[str, Candidate], gradients: tuple[str, ...]) -> Case:
    return Case(
        family="rope_decoding",
        name=variant.name,
        draw=partial(rope._draw, variant=variant),
        reference=rope._reference,
        bounds=lambda inputs, results: {n: b for n, b in rope._bounds(inputs, results).items() if n in results},
        candidates=candidates,
        gradients=gradients,
        dtypes=variant.dtypes,
    )


def _unsloth_decoding(inputs: Inputs) -> Results:
    """On CUDA the public function; it refuses a CPU tensor, for which its one call is made here."""
    decode, launch, eager = loading.unsloth("rope_embedding", "decode_rope_inplace", "_rope_qk", "_eager_kernel")
    q, k, cos, sin = (inputs[name].detach() for name in ("Q", "K", "cos", "sin"))
    positions = inputs["positions"]
    if q.device.type == "cpu":
        launch(q, k, q, k, cos, sin, positions.reshape(-1), True, False, eager)
    elif not decode(q, k, cos, sin, positions):
        raise RuntimeError("decode_rope_inplace refused the input")
    return {"Qr": q, "Kr": k}


def _unsloth_in_place(inputs: Inputs) -> Results:
    """It rotates [batch, length, heads, width], and copies are given: autograd refuses writes into leaves."""
    module, function = loading.unsloth("rope_embedding"), loading.unsloth("rope_embedding", "inplace_rope_embedding")
    if not hasattr(module, "_rope_embedding_QK"):
        raise loading.Missing("releases before _rope_embedding_QK rotate [batch, heads, length, width] here")
    q, k = (inputs[name].transpose(1, 2).clone() for name in "QK")
    tables = (inputs[name][None, None] for name in ("cos", "sin"))
    turned = function(q, k, *tables, inputs["positions"].long())
    return {name: value.transpose(1, 2) for name, value in zip(("Qr", "Kr"), turned, strict=True)}
