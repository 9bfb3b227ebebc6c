"""The shape that every kernel family's cases share.

Naming: inputs are named; ``dY`` among the inputs is the incoming gradient of the output ``Y``, and ``dX`` in the
results is the gradient of the input ``X``. A case whose inputs hold no incoming gradient checks the forward only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernels_check.numerics import Bound

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Inputs = dict[str, Any]
"""Tensors and plain values by name."""
Results = dict[str, "Tensor"]
DTYPES = ("float32", "float16", "bfloat16")
TWO_DTYPES = ("float32", "bfloat16")
"""For cases that are about layout or size, which float16 would only repeat."""
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One implementation to check.

    ``call`` gets the inputs on the case's device and returns the outputs; gradients come from autograd unless it
    returns them under their names. It imports what it needs itself and raises ``loading.Missing`` where a release
    lacks it.
    """

    call: Callable[[Inputs], Results]
    kernels: tuple[str, ...]
    """Regular expressions; each must match the name of a launched kernel, or the case counts as not exercised."""
    overwrites: tuple[str, ...] = ()
    """Inputs that it may overwrite; every other input must be unchanged afterwards."""
    bounds: "Callable[[Inputs, Results], dict[str, Bound]] | None" = None
    """Bounds in place of the case's, where its algorithm rounds more often; say in the family why."""
    lacks: tuple[str, ...] = ()
    """Results of the case that it does not have."""
    known_fault: str | None = None
    """A fault of this candidate on this case that was looked into: it still fails, but does not fail the whole
    check."""
    cpu_reason: str | None = None
    """Why it cannot run under the interpreter."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel on one kind of input."""

    family: str
    name: str
    draw: "Callable[[torch.Generator, torch.dtype], Inputs]"
    """Draws the inputs on the CPU; they are moved to the device with strides kept, so that both devices see the
    same."""
    reference: Callable[[Inputs], Results]
    """The outputs in float64 from the inputs in float64; gradients follow by autograd unless returned by name."""
    bounds: Callable[[Inputs, Results], dict[str, Bound]]
    """From float64 inputs and float64 results (gradients included): what each result's error may be made of."""
    candidates: Mapping[str, Candidate]
    gradients: tuple[str, ...] = ()
    """Inputs whose gradients are compared."""
    dtypes: tuple[str, ...] = DTYPES
    devices: tuple[str, ...] = DEVICES

    @property
    def id(self) -> str:
        return f"{self.family}/{self.name}"


def expanded_rows(row: "Tensor", rows: int) -> "Tensor":
    """One row seen ``rows`` times: stride 0 along the first dimension, as a broadcast gradient has."""
    return row.unsqueeze(0).expand(rows, *row.shape)


def strided(values: "Tensor") -> "Tensor":
    """The same values as every second column of a wider tensor (NaN between them): not contiguous, last stride 2."""
    import torch

    wide = torch.full((*values.shape[:-1], values.shape[-1] * 2), torch.nan, dtype=values.dtype)
    wide[..., ::2] = values
    return wide[..., ::2]
