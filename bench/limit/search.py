"""Finds where a monotone yes turns into a no, with few trials: first a bracket around a guess, then halving.

Knows nothing of cells: ``trial`` says whether a value fits. Values come from a grid (increasing positive integers).
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

from bench.errors import InputError

RELATIVE = 0.05
"""The search is over when the smallest value that fails is within 5 % of the largest that fits, or next to it."""
STRIDES_UP = (1.05, 1.25, 1.5)
STRIDES_DOWN = (1.25, 1.5)
"""Factors of the first moves away from the guess; later ones are ``STRIDE``. Up starts small: a guess that has been set
right by a measured peak is good to a few percent, and one small step then ends the search."""
STRIDE = 2.0
LEADS = 2
"""Moves that go where a new guess says, beyond the stride, without using the stride up: a guess that keeps moving
cannot keep the search going."""


@dataclass(frozen=True)
class Bracket:
    """The largest value that fits and the smallest that does not; None where the grid has none."""

    fits: int | None
    fails: int | None


def search(
    trial: Callable[[int], bool], grid: Sequence[int], guess: Callable[[], float], known: Mapping[int, bool]
) -> Bracket:
    """Try values until the bracket is narrow. ``guess`` is asked anew before each value that it sways.

    ``known`` are earlier answers. Raises InputError where they contradict each other, and whatever ``trial`` raises.
    """
    low = max((value for value, fits in known.items() if fits), default=None)
    high = min((value for value, fits in known.items() if not fits), default=None)
    if low is not None and high is not None and high <= low:
        raise InputError(
            f"{low} fits and {high} does not",
            "more memory is needed for less: the limit is not monotone, or something else was on the GPU",
            "look at both records; run again with another --out",
        )
    moves, leads = 0, LEADS
    while not _narrow(low, high, grid):
        if low is None and high is None:
            value = floor(grid, guess())
        elif high is None:
            assert low is not None
            stride, aim = low * _stride(STRIDES_UP, moves), guess()
            value = max(floor(grid, max(aim, stride)), _after(grid, low))
            moves, leads = (moves, leads - 1) if aim > stride and leads else (moves + 1, leads)
        elif low is None:
            value = min(floor(grid, min(guess(), high / _stride(STRIDES_DOWN, moves))), _before(grid, high))
            moves += 1
        else:
            value = min(max(floor(grid, isqrt(low * high)), _after(grid, low)), _before(grid, high))
        if trial(value):
            low = value
        else:
            high = value
    return Bracket(low, high)


def floor(grid: Sequence[int], value: float) -> int:
    """The largest grid value that is not above ``value``, or the smallest of all."""
    return grid[max(0, bisect_right(grid, value) - 1)]


def above(grid: Sequence[int], value: int) -> int | None:
    """The smallest grid value at least 5 % above ``value``; None past the end. The next one where 5 % is finer."""
    index = bisect_right(grid, value * (1 + RELATIVE) - 1e-9)
    return grid[index] if index < len(grid) else None


def _narrow(low: int | None, high: int | None, grid: Sequence[int]) -> bool:
    if low is None or high is None:
        return low == grid[-1] or high == grid[0]
    return high <= low * (1 + RELATIVE) or _after(grid, low) >= high


def _after(grid: Sequence[int], value: int) -> int:
    return grid[min(len(grid) - 1, bisect_right(grid, value))]


def _before(grid: Sequence[int], value: int) -> int:
    return floor(grid, value - 1)


def _stride(strides: Sequence[float], moves: int) -> float:
    return strides[moves] if moves < len(strides) else STRIDE
