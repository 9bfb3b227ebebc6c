"""NF4 weights as bitsandbytes packs them; shared by the families that read them.

A weight w_j = c[q_j] a_b: 4-bit codes q (two a byte, the earlier one in the high half) into the codebook c, and one
scale a per block of 64. Double quantisation stores the scales as bytes too: a_b = c2[q2_b] a2_(b // 256) + offset.
Source: Dettmers et al., QLoRA (2023), sections 3 and appendix E.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels_check import loading

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

PARTS = ("packed", "absmax", "code", "code2", "absmax2", "offset")
BLOCK = 64
BLOCK2 = 256


def draw(weight: Tensor, *, nested: bool = True) -> dict[str, Any]:
    """``weight`` quantised by bitsandbytes on the CPU, as tensors by the names of ``PARTS``."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=nested)
    parts = {"packed": packed, "absmax": state.absmax, "code": state.code}
    if nested:
        parts |= {"code2": state.state2.code, "absmax2": state.state2.absmax, "offset": state.offset}
    return parts


def state(parts: dict[str, Any], shape: torch.Size, dtype: torch.dtype) -> "QuantState":
    """bitsandbytes' own description of the packed weight."""
    from bitsandbytes.functional import QuantState

    options: dict[str, Any] = {}
    if "code2" in parts:
        second = QuantState(absmax=parts["absmax2"], code=parts["code2"], blocksize=BLOCK2, dtype=torch.float32)
        options = {"offset": parts["offset"], "state2": second}
    return QuantState(
        absmax=parts["absmax"], shape=shape, code=parts["code"], blocksize=BLOCK, quant_type="nf4", dtype=dtype,
        **options,
    )  # fmt: skip


def needs_own_reader(packed: Tensor) -> None:
    """Raise Missing on a CPU for a release that has no NF4 kernel of its own."""
    try:
        loading.unsloth("nf4")
    except loading.Missing as missing:
        if packed.device.type == "cpu":
            how = "reads NF4 with bitsandbytes' C functions, which need CUDA"
            raise loading.Missing(f"unsloth {loading.version('unsloth')} {how}") from missing


def bitsandbytes_dense(parts: dict[str, Any], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight as bitsandbytes dequantises it."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parts["packed"], state(parts, shape, dtype))


def scales(parts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The blocks' scales in float64, and the sum of their terms' magnitudes."""
    if "code2" not in parts:
        return parts["absmax"].double(), parts["absmax"].double().abs()
    absmax2 = parts["absmax2"].double().repeat_interleave(BLOCK2)[: len(parts["absmax"])]
    products = parts["code2"].double()[parts["absmax"].long()] * absmax2
    return products + parts["offset"].double(), products.abs() + parts["offset"].double().abs()


def dense(parts: dict[str, Any], shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The weight in float64 by the formula above, and the sum of its terms' magnitudes."""
    packed = parts["packed"].flatten().long()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[: shape.numel()]
    values, sizes = (s.repeat_interleave(BLOCK)[: shape.numel()] for s in scales(parts))
    table = parts["code"].double()[codes]
    return (table * values).view(shape), (table.abs() * sizes).view(shape)
