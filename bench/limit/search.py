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
STRIDES_UP = (1.25, 1.5)
STRIDES_DOWN = (1.1, 1.25, 1.5)
"""Factors of the first moves away from the guess; later ones are ``STRIDE``. Down starts small: a guess is good to some
percent before a peak was measured."""
STRIDE = 2.0
LEADS = 2
"""Moves that go where a new guess says, and at least 5 % up: a guess that a measured peak has set right is good to a
few percent, and one such step that fails ends the search. Then strides and halving alone count, so that a guess that
keeps moving cannot keep the search going."""


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
        elif low is None:
            assert high is not None
            value = min(floor(grid, min(guess(), high / _stride(STRIDES_DOWN, moves))), _before(grid, high))
            moves += 1
        else:
            aim = max(guess(), low * (1 + RELATIVE)) if leads else 0.0
            if aim and (high is None or aim < high):
                value, leads = floor(grid, aim), leads - 1
            elif high is None:
                value, moves = floor(grid, low * _stride(STRIDES_UP, moves)), moves + 1
            else:
                value = floor(grid, isqrt(low * high))
            value = max(value, _after(grid, low))
            value = value if high is None else min(value, _before(grid, high))
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
