"""One projection with a low-rank update for one token of every sequence, as inference calls it (formula: see
``fast_lora``).

A dense base is multiplied as it is. An NF4 base is multiplied from its packed bytes for one to four tokens, and
dequantised for more; the reference takes the rounded weight, which the packed product does not round.
"""

from dataclasses import dataclass
from functools import partial

import torch

from kernels_check import loading
from kernels_check.case import TWO_DTYPES, Candidate, Case, Inputs, Results
from kernels_check.families import fast_lora, simulated
from kernels_check.families.simulated import Rounding
from kernels_check.numerics import Bound

HALF = ("float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How many sequences, the base, and the dtype of the update's weights."""

    name: str
    tokens: int = 1
    nf4: bool = False
    float32_lora: bool = False
    kernel: str | None = None
    dtypes: tuple[str, ...] = TWO_DTYPES

    @property
    def layer(self) -> fast_lora.Variant:
        return fast_lora.Variant(
            name=self.name, block="o", shape=(self.tokens, 1), nf4=self.nf4, float32_lora=self.float32_lora
        )


def cases() -> list[Case]:
    """Every way that the number of tokens and the base choose."""
    packed = partial(Variant, nf4=True, dtypes=HALF)
    variants = [
        Variant(name="one token"),
        Variant(name="one token, float32 update", float32_lora=True, dtypes=HALF),
        Variant(name="three tokens", tokens=3),
        packed(name="one token, NF4", kernel="_gemv_nf4_(words_)?kernel"),
        packed(name="one token, NF4, float32 update", float32_lora=True, kernel="_gemv_nf4_(words_)?kernel"),
        packed(name="17 tokens, NF4", tokens=17, kernel="_nf4_dequant_kernel"),
    ]
    return [_case(variant) for variant in variants]


def _case(variant: Variant) -> Case:
    return Case(
        family="lora_decoding",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=_reference,
        bounds=partial(_bounds, variant=variant),
        candidates={
            "unsloth": Candidate(
                call=partial(_unsloth, variant=variant), kernels=(variant.kernel,) if variant.kernel else ()
            )
        },
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    inputs = fast_lora._draw(generator, dtype, variant=variant.layer)
    del inputs["dY"]
    return inputs


def _reference(inputs: Inputs) -> Results:
    return {"Y": fast_lora._linear(inputs, "o", inputs["X"])}


def _bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    def algorithm(r: Rounding) -> Results:
        rounded = (["A_o", "B_o"] if variant.float32_lora else []) + (["W_o"] if variant.nf4 else [])
        return {"Y": fast_lora._linear(inputs | {name: r(inputs[name]) for name in rounded}, "o", inputs["X"], r)}

    return simulated.bounds(algorithm, getattr(torch, inputs["dtype"]), results)


def _unsloth(inputs: Inputs, variant: Variant) -> Results:
    function = loading.unsloth("utils", "fast_linear_forward")
    with torch.no_grad():
        return {"Y": function(fast_lora._peft_module(inputs, variant.layer).o_proj, inputs["X"])}
