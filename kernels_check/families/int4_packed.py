"""Integer weights kept packed (compressed-tensors' pack-quantized): w = (q - z) s, dequantised, or multiplied with one
token.

Source: compressed_tensors, compressors/pack_quantized. Codes q of ``bits`` bits lie in 32-bit words, the first in the
lowest bits, as q + 2^(bits - 1); a group of columns of one row shares a scale s and, where the format is not symmetric,
a zero point z (packed the same way along the rows). Columns may carry their group's number (activation order). q - z is
exact; the product is rounded once to the storage dtype where it is stored, which the token's product does not do.
"""

from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import DTYPES, TWO_DTYPES, Candidate, Case, Inputs, Results
from kernels_check.numerics import Bound


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A weight's shape and format; ``group`` 0 is one group a row."""

    name: str
    shape: tuple[int, int]
    bits: int = 4
    group: int = 32
    zero_point: bool = False
    ordered: bool = False
    dtypes: tuple[str, ...] = DTYPES


def cases() -> list[Case]:
    """Symmetric or not, 4 and 8 bits, groups that split a word, rows and columns that do not fill a block or word."""
    variants = [
        Variant(name="symmetric", shape=(24, 64)),
        Variant(name="zero points", shape=(21, 96), zero_point=True),
        Variant(name="8 bits", shape=(19, 64), bits=8, zero_point=True, dtypes=TWO_DTYPES),
        Variant(name="one group", shape=(5, 72), group=0, dtypes=TWO_DTYPES),
        Variant(name="columns end within a word", shape=(17, 1027), group=0, dtypes=TWO_DTYPES),
        Variant(name="groups split a word", shape=(9, 60), group=12, zero_point=True, dtypes=TWO_DTYPES),
        Variant(name="activation order", shape=(18, 64), group=16, zero_point=True, ordered=True, dtypes=TWO_DTYPES),
        Variant(name="several blocks", shape=(33, 1536), group=128, zero_point=True, dtypes=("bfloat16",)),
    ]
    return [_case(variant) for variant in variants]


def _case(variant: Variant) -> Case:
    token = ("_gemv_kernel",)
    return Case(
        family="int4_packed",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=partial(_reference, variant=variant),
        bounds=partial(_bounds, variant=variant),
        candidates={
            "unsloth": Candidate(
                call=partial(_unsloth, variant=variant), kernels=("_dequant_kernel",), lacks=("token",)
            ),
            "unsloth token": Candidate(call=partial(_unsloth_token, variant=variant), kernels=token, lacks=("W",)),
            "unsloth token, split": Candidate(
                call=partial(_unsloth_token, variant=variant, processors=1000), kernels=token, lacks=("W",)
            ),
        },
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    rows, width = variant.shape
    groups = -(-width // (variant.group or width))

    def codes(*shape: int) -> Tensor:
        return torch.randint(0, 2**variant.bits, shape, generator=generator)

    scale = torch.exp2(torch.randint(-6, 3, (rows, groups), generator=generator).float())
    order = torch.randint(0, groups, (width,), generator=generator, dtype=torch.int32)
    zero = codes(rows, groups) if variant.zero_point else None
    return {
        "packed": _packed(codes(rows, width), variant.bits),
        "scale": (scale * (1 + torch.rand((rows, groups), generator=generator))).to(dtype),
        "zero": None if zero is None else _packed(zero.T, variant.bits).T.contiguous(),
        "order": order if variant.ordered else None,
        "X": torch.randn((1, width), generator=generator).to(dtype),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _packed(codes: Tensor, bits: int) -> Tensor:
    """[rows, width] codes as [rows, words] 32-bit words."""
    each = 32 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % each)).unflatten(1, (-1, each))
    words = (codes << (bits * torch.arange(each))).sum(2)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _unpacked(words: Tensor, bits: int, width: int) -> Tensor:
    shifts = bits * torch.arange(32 // bits)
    return ((words.long().unsqueeze(2) >> shifts) & (2**bits - 1)).flatten(1)[:, :width]


def _dense(inputs: Inputs, variant: Variant) -> Tensor:
    rows, width = variant.shape
    group = torch.arange(width) // (variant.group or width) if inputs["order"] is None else inputs["order"].long()
    zero = torch.full_like(inputs["scale"], 2 ** (variant.bits - 1))
    if inputs["zero"] is not None:
        zero = _unpacked(inputs["zero"].T, variant.bits, rows).T.double()
    return (_unpacked(inputs["packed"], variant.bits, width) - zero[:, group]) * inputs["scale"][:, group]


def _reference(inputs: Inputs, variant: Variant) -> Results:
    dense = _dense(inputs, variant)
    return {"W": dense, "token": inputs["X"] @ dense.T}


def _bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    terms = inputs["X"].abs() @ results["W"].abs().T
    return {"W": Bound(steps=1), "token": Bound(steps=variant.shape[1] + 2, magnitude=terms)}


def _state(inputs: Inputs, variant: Variant) -> object:
    state = loading.unsloth("int4_packed", "Int4QuantState")
    parts = (inputs[name] for name in ("scale", "zero", "order"))
    return state(*parts, variant.shape, variant.bits, variant.group or -1, getattr(torch, inputs["dtype"]))


def _unsloth(inputs: Inputs, variant: Variant) -> Results:
    dequantize = loading.unsloth("int4_packed", "int4_dequantize")
    return {"W": dequantize(inputs["packed"], _state(inputs, variant))}


def _unsloth_token(inputs: Inputs, variant: Variant, processors: int = 1) -> Results:
    """On a GPU with more ``processors`` than blocks of rows the columns are split, and the parts added atomically."""
    module = loading.unsloth("int4_packed")
    with torch.no_grad(), patch.object(module, "_sm_count", lambda index: processors):
        return {"token": module.int4_matmul(inputs["X"], inputs["packed"], _state(inputs, variant))}
