"""SwiGLU: h = f(e) g with f(e) = e s(e), s the logistic function; f' = s (1 + e (1 - s)).

Source: Shazeer, GLU Variants Improve Transformer (2020); transformers' LlamaMLP. s = 1 / (1 + exp(-e)): exp's argument
is rounded, so that the relative error of exp grows with |e|, and that of s by (1 - s) of it.
"""

import torch
from torch import Tensor

from kernels_check import loading
from kernels_check.case import Candidate, Case, Inputs, Results
from kernels_check.families import gated


def cases() -> list[Case]:
    """SwiGLU on every kind of input."""
    liger = Candidate(
        call=_liger,
        kernels=("_swiglu_forward_kernel(_tiled)?",),
        lacks=("h again",),
        overwrites=("e", "g"),  # its backward stores the gradients there
    )
    return gated.cases(
        gated.Activation(
            family="swiglu", name="", value=lambda e: e * torch.sigmoid(e), value_magnitude=_value,
            slope_magnitude=_slope, module="swiglu", forward="swiglu_fg_kernel", backward="swiglu_DWf_DW_dfg_kernel",
            forward_kernel="_fg_kernel", backward_kernel="_DWf_DW_dfg_kernel", liger=liger,
        )
    )  # fmt: skip


def _value(e: Tensor) -> Tensor:
    s = torch.sigmoid(e)
    return (e * s).abs() * (1 + e.abs() * (1 - s))


def _slope(e: Tensor) -> Tensor:
    s = torch.sigmoid(e)
    return s * (1 + e.abs() * (1 - s)) * (1 + e.abs() * (1 - s))


def _liger(inputs: Inputs) -> Results:
    return {"h": loading.liger("swiglu", "LigerSiLUMulFunction").apply(inputs["e"], inputs["g"])}
