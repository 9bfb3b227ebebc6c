"""Tolerances that follow from the precision: how far apart rounding alone may take two correct trainings of one model.

The formulas are here, in one place; docs/METHOD.md lays measured distances beside them.
"""

import math
from dataclasses import dataclass

from bench.probe import DISTANCE_ERROR

ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8, "nf4": 2.0**-8, "int8": 2.0**-6}
"""Unit roundoff u of the arithmetic, by the cell's precision. nf4 computes in bf16, and both sides quantise alike. int8
rounds activations to absmax / 127 a row: half a step, where the largest of some thousand values is about 4 times their
root mean square."""
ROUNDINGS_PER_LAYER = 12
"""Results rounded one after the other on the way through a block: norm, projection, rotary embedding, scores, softmax,
attention's output, its projection, residual sum, norm, gate or up projection, activation and product, down projection
with residual sum. As many on the way back."""
ROUNDINGS_OUTSIDE = 4
"""Embedding, last norm, head, loss."""


@dataclass(frozen=True)
class Rounding:
    """How far two correct computations may lie apart: each rounds on its way, in its own order.

    Errors of R successive roundings, each at most u and of random sign, stay below lambda u sqrt(R) but for a
    probability of 2 exp(-lambda^2 / 2) (Higham and Mary 2019, to first order in u); lambda = 4 makes that
    7e-4. A *root mean square* over many independent errors does not reach such a bound: it is sqrt(2/3) u sqrt(R) for
    two sides that round alike, before anything amplifies it; 2 u sqrt(R) is the bound for what is taken over tensors.
    """

    roundoff: float
    forward: float
    """Roundings on the path to the loss."""
    both: float
    """Roundings on the path to a gradient."""

    @classmethod
    def of(cls, precision: str, layers: int, inner: int) -> "Rounding":
        """``inner`` is the longest inner product of a block, whose terms count in fp32 alone: the products of the
        narrower types are summed in fp32, where their roundings are too small to matter."""
        terms = inner if precision == "fp32" else 1
        forward = (ROUNDINGS_PER_LAYER * layers + ROUNDINGS_OUTSIDE) * terms
        return cls(ROUNDOFF[precision], forward, forward + ROUNDINGS_PER_LAYER * layers * terms)

    def loss(self, tokens: int) -> float:
        """Relative, of a mean over ``tokens``: their errors are independent, so the mean's is sqrt(tokens) smaller."""
        return 4 * self.roundoff * math.sqrt(self.forward / tokens)

    def tensor(self) -> float:
        """Relative distance of one tensor's gradients. A sum over tokens that cancels gains nothing from their number.

        Four standard errors of the sketch are added, since the distance is read from sketches.
        """
        return 4 * self._gradient() * (1 + 4 * DISTANCE_ERROR)

    def median_tensor(self) -> float:
        """Relative distance of the median tensor: what all tensors share, such as another scaling, shows here first."""
        return 2 * self._gradient() * (1 + 4 * DISTANCE_ERROR)

    def gradient_norm(self, tokens: int) -> float:
        """Relative, of the norm of a gradient g with an error e: at most |e|/|g| by the triangle inequality.

        To first order only the part of e along g counts, which averages over the tokens; to second, |e|^2 / 2.
        """
        bound = 4 * self._gradient()
        return min(bound, bound / math.sqrt(tokens) + bound**2 / 2)

    def _gradient(self) -> float:
        return self.roundoff * math.sqrt(self.both)
