"""Before anything is timed: does a candidate compute the operation, and does its own kernel run?"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from kernels_check.case import Inputs, Results
from kernels_check.launches import watched
from kernels_check.speed.operation import BOTH, Direction, Operation

if TYPE_CHECKING:
    from torch import Tensor

MOST_DISTANCE = 10 * 2.0**-8
"""Of a result from eager's, relative to its norm: ten spacings of bfloat16. Exactness is ``kernels check``'s task."""


class NotTimed(Exception):
    """Why a candidate is not timed."""


def distances(
    operation: Operation, direction: Direction, candidate: str, timed: Callable[[Inputs], Results],
    eager: Callable[[Inputs], Results], inputs: Inputs,
) -> dict[str, float]:  # fmt: skip
    """Relative distance of every result from eager's. Raises NotTimed where the candidate's kernel did not run, or a
    result is missing or not eager's."""
    implementation = operation.candidates[candidate]
    expected = {name: value.detach().clone() for name, value in eager(inputs).items()}
    if implementation.proof:
        try:
            implementation.proof(inputs)
        except RuntimeError as error:
            raise NotTimed(str(error)) from error
    with watched() as launched:
        got = timed(inputs)
    if implementation.compiled and not _graphs():
        raise NotTimed("not exercised: torch.compile made no graph")
    wanted = implementation.kernels + (implementation.backward_kernels if direction == BOTH else ())
    if unseen := [k for k in wanted if not any(re.fullmatch(k, name) for name in launched)]:
        raise NotTimed(f"not exercised: not launched: {', '.join(unseen)}; launched: {', '.join(launched) or 'none'}")
    if absent := sorted(set(expected) - set(got)):
        raise NotTimed(f"did not return {', '.join(absent)}")
    found = {name: _distance(got[name].detach(), value) for name, value in expected.items()}
    if wrong := {name: d for name, d in found.items() if not d <= MOST_DISTANCE}:
        raise NotTimed("differs from eager: " + ", ".join(f"{name} by {d:.2g}" for name, d in wrong.items()))
    return found


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _distance(got: "Tensor", expected: "Tensor") -> float:
    norm = expected.float().norm().clamp(min=1e-30)
    return float(((got.float() - expected.float()).norm() / norm).cpu())
