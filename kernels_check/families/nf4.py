"""NF4 weights read back: dequantised (W = c[q] a, see ``nf4_weights``) and multiplied with one or a few tokens, x W^T.

The reference is the formula from the packed bytes; bitsandbytes' own dequantisation is a second candidate. The scale
takes two float32 roundings and the weight one more. The product sums in float32 and does not store the weight before.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import DTYPES, Candidate, Case, Inputs, Results
from kernels_check.families import nf4_weights
from kernels_check.numerics import Bound

HALF = ("float16", "bfloat16")
"""What the kernels of the product take."""
OTHER_READERS = (512, 4, True, True, 2)
"""Settings that newer GPUs get: packed bytes read as words, codebook gathered in registers."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A weight's shape; ``tokens`` is 0 where it is only dequantised."""

    name: str
    shape: tuple[int, int]
    tokens: int = 0
    nested: bool = True
    scale: float = 1.0
    dtypes: tuple[str, ...] = DTYPES


def cases() -> list[Case]:
    """Nested and plain scales, sizes that end within a block or a byte, more than one program, magnitudes."""
    weights = [
        Variant(name="plain", shape=(96, 64)),
        Variant(name="scales not quantised", shape=(40, 64), nested=False),
        Variant(name="odd number of elements", shape=(5, 37)),
        Variant(name="ends within a block", shape=(7, 50)),
        Variant(name="more than 256 blocks", shape=(260, 64), dtypes=("float16",)),
        Variant(name="many bytes", shape=(509, 259), dtypes=("bfloat16",)),
        Variant(name="tiny", shape=(33, 64), scale=2.0**-12, dtypes=HALF),
        Variant(name="huge", shape=(33, 64), scale=2.0**8, dtypes=HALF),
    ]
    products = [
        Variant(name="one token", shape=(13, 192), tokens=1, dtypes=HALF),
        Variant(name="one token, one row", shape=(1, 64), tokens=1, dtypes=HALF),
        Variant(name="one token, scales not quantised", shape=(10, 128), tokens=1, nested=False, dtypes=HALF),
        Variant(name="one token, two scales a row", shape=(10, 128), tokens=1, dtypes=HALF),
        Variant(name="one token, a tile, scales not quantised", shape=(5, 2048), tokens=1, nested=False, dtypes=HALF),
        Variant(name="one token, two blocks of columns", shape=(6, 2112), tokens=1, dtypes=HALF),
        Variant(name="three tokens", shape=(9, 320), tokens=3, dtypes=HALF),
    ]
    return [_case(variant) for variant in weights + products]


def _case(variant: Variant) -> Case:
    unsloth = partial(_unsloth_product if variant.tokens else _unsloth, variant=variant)
    if variant.tokens:
        candidates = {
            f"unsloth {kind}": Candidate(call=partial(unsloth, kind=kind), kernels=(kernel,))
            for kind, kernel in (("bytes", "_gemv_nf4_kernel"), ("words", "_gemv_nf4_words_kernel"))
        }
    else:
        kernels = ("_nf4_dequant_kernel",)
        candidates = {
            "unsloth": Candidate(call=unsloth, kernels=kernels),
            "unsloth words": Candidate(call=partial(unsloth, settings=OTHER_READERS), kernels=kernels),
            "bitsandbytes": Candidate(call=partial(_bitsandbytes, variant=variant), kernels=()),
        }
        if variant.name == "plain":
            candidates["unsloth transposed"] = Candidate(call=partial(unsloth, transposed=True), kernels=kernels)
    return Case(
        family="nf4",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=partial(_reference, variant=variant),
        bounds=partial(_bounds, variant=variant),
        candidates=candidates,
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    rows, width = variant.shape
    weight = torch.randn(variant.shape, generator=generator) * variant.scale
    weight *= torch.exp2(torch.randint(-3, 4, (rows, 1), generator=generator).float())  # unlike blocks
    weight.view(-1)[: min(64, weight.numel())] *= (torch.arange(min(64, weight.numel())) == 3).float()  # one outlier
    inputs: Inputs = dict(nf4_weights.draw(weight.to(dtype), nested=variant.nested))
    inputs["dtype"] = str(dtype).removeprefix("torch.")
    if variant.tokens:
        inputs["X"] = torch.randn((variant.tokens, 1, width), generator=generator).to(dtype)
    return inputs


def _reference(inputs: Inputs, variant: Variant) -> Results:
    weight, _ = nf4_weights.dense(inputs, torch.Size(variant.shape))
    return {"Y": inputs["X"] @ weight.T} if variant.tokens else {"W": weight}


def _bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    _, size = nf4_weights.dense(inputs, torch.Size(variant.shape))
    if not variant.tokens:
        return {"W": Bound(steps=3, magnitude=size)}
    return {"Y": Bound(steps=variant.shape[1] + 4, magnitude=inputs["X"].abs() @ size.T)}


def _state(inputs: Inputs, variant: Variant) -> Any:
    return nf4_weights.state(inputs, torch.Size(variant.shape), getattr(torch, inputs["dtype"]))


def _unsloth(
    inputs: Inputs, variant: Variant, settings: tuple[Any, ...] | None = None, transposed: bool = False
) -> Results:
    """``transposed``: called with the transposed bytes, as every backward pass does."""
    nf4_weights.needs_own_reader(inputs["packed"])
    read = loading.unsloth("utils", "fast_dequantize")
    chosen: AbstractContextManager[Any] = nullcontext()
    if settings:
        chosen = patch.object(loading.unsloth("nf4"), "_CONFIG_OVERRIDE", settings)
    with chosen:
        weight: Tensor = read(inputs["packed"].t() if transposed else inputs["packed"], _state(inputs, variant))
    return {"W": weight.t() if transposed else weight}


def _unsloth_product(inputs: Inputs, variant: Variant, kind: str) -> Results:
    """``kind`` forces one of the two kernels, of which Unsloth takes one by Triton's version."""
    module, state, x = loading.unsloth("nf4_gemv"), _state(inputs, variant), inputs["X"]
    with patch.object(module, "_FORCE_KERNEL", kind):
        if variant.tokens == 1:
            return {"Y": loading.unsloth("utils", "fast_gemv")(x, inputs["packed"], state)}
        unpack = loading.unsloth("utils", "_unpack_quant_state")
        absmax, shape, _, block, code, code2, absmax2, offset, block2 = unpack(state)
        out = torch.empty((variant.tokens, 1, shape[0]), dtype=x.dtype, device=x.device)
        parts = (absmax, code2, absmax2, offset, code, block, block2, shape)
        return {"Y": module.gemv_nf4_rows(x, inputs["packed"], *parts, out)}


def _bitsandbytes(inputs: Inputs, variant: Variant) -> Results:
    return {"W": nf4_weights.bitsandbytes_dense(inputs, torch.Size(variant.shape), getattr(torch, inputs["dtype"]))}
