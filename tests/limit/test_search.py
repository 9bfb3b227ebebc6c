"""The search alone: any threshold is found within the resolution, by few trials, whatever the guess."""

from collections.abc import Sequence
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import InputError
from bench.limit.search import LEADS, RELATIVE, above, search

GRIDS: list[Sequence[int]] = [range(512, 2**21 + 1, 256), range(1, 2**14 + 1), [1, 2, 4, *range(8, 4097, 8)]]


class Threshold:
    """Fits up to ``limit``; counts its trials and refuses the same value twice."""

    def __init__(self, limit: float, grid: Sequence[int]) -> None:
        self.limit, self.grid, self.tried = limit, grid, dict[int, bool]()

    def __call__(self, value: int) -> bool:
        assert value in self.grid and value not in self.tried
        self.tried[value] = value <= self.limit
        return self.tried[value]


@given(grid=st.sampled_from(GRIDS), limit=st.floats(0.5, 2**22), guess=st.floats(1, 2**22), wrong=st.floats(0.02, 50))
def test_any_threshold_is_found_within_the_resolution(
    grid: Sequence[int], limit: float, guess: float, wrong: float
) -> None:
    trial = Threshold(limit, grid)
    asked = iter([guess])  # the first guess, then one that a peak would have set right, or made worse
    found = search(trial, grid, lambda: next(asked, limit * wrong), {})
    if found.fits is None:
        assert limit < grid[0] and found.fails == grid[0]
    elif found.fails is None:
        assert limit >= grid[-1] and found.fits == grid[-1]
    else:
        assert found.fits <= limit < found.fails
        between = [value for value in (found.fits + 1, found.fails - 1) if value in grid]
        assert found.fails <= found.fits * (1 + RELATIVE) or not between or found.fails - found.fits <= 256
        assert trial.tried[found.fits] and not trial.tried[found.fails]
    assert len(trial.tried) <= 12 + log2(grid[-1])


@given(grid=st.sampled_from(GRIDS), limit=st.floats(600, 4000), off=st.floats(0.02, 50))
def test_the_trials_are_few_and_grow_with_the_log_of_the_error(grid: Sequence[int], limit: float, off: float) -> None:
    trial = Threshold(limit, grid)
    search(trial, grid, lambda: limit * off, {})
    assert len(trial.tried) <= 9 + LEADS + ceil(abs(log2(off)))


@given(limit=st.integers(2000, 500_000), off=st.floats(0.8, 1.25))
def test_a_fair_guess_that_is_never_set_right_needs_eight_at_most(limit: int, off: float) -> None:
    trial = Threshold(limit, GRIDS[0])
    search(trial, GRIDS[0], lambda: limit * off, {})
    assert len(trial.tried) <= 8


@pytest.mark.parametrize("limit", [21_848, 40_724, 78_475])
@pytest.mark.parametrize(
    "off, most", [(0.8, 3), (0.9, 3), (0.95, 3), (0.97, 3), (1, 2), (1.03, 3), (1.05, 4), (1.1, 3)]
)
def test_a_guess_that_is_some_percent_off_and_set_right_by_what_fits_needs_few(
    limit: int, off: float, most: int
) -> None:
    trial = Threshold(limit, GRIDS[0])
    search(trial, GRIDS[0], lambda: 0.98 * limit * (1 if any(trial.tried.values()) else off), {})
    assert len(trial.tried) <= most


def test_a_guess_set_right_by_the_first_probe_needs_three() -> None:
    trial, guesses = Threshold(100_000, GRIDS[0]), iter([40_000.0])
    found = search(trial, GRIDS[0], lambda: next(guesses, 98_000), {})
    assert list(trial.tried) == [39_936, 97_792, 102_656] and (found.fits, found.fails) == (97_792, 102_656)


@given(limit=st.integers(1000, 100_000), seen=st.lists(st.integers(2, 800), max_size=6))
def test_what_is_known_is_not_tried_again_and_bounds_the_search(limit: int, seen: list[int]) -> None:
    known = {256 * n: 256 * n <= limit for n in seen}
    trial = Threshold(limit, GRIDS[0])
    found = search(trial, GRIDS[0], lambda: 4096, known)
    assert not set(trial.tried) & set(known)
    assert found.fits is not None and found.fails is not None and found.fits <= limit < found.fails
    assert all(max(v for v in (*known, 0) if v <= limit) < value for value in trial.tried)


def test_answers_that_contradict_each_other_are_an_error() -> None:
    with pytest.raises(InputError, match="2048 fits and 1024 does not: .* not monotone"):
        search(lambda value: True, GRIDS[0], lambda: 4096, {2048: True, 1024: False})


def test_a_trial_that_breaks_ends_the_search() -> None:
    tried = []

    def broken(value: int) -> bool:
        tried.append(value)
        raise InputError(f"max_length {value}", "the probe crashed")

    with pytest.raises(InputError, match="max_length 4096: the probe crashed"):
        search(broken, GRIDS[0], lambda: 4096, {})
    assert tried == [4096]


def test_five_percent_above_is_on_the_grid_and_never_the_value_itself() -> None:
    assert above(GRIDS[0], 51_200) == 53_760  # exactly 5 %
    assert above(GRIDS[0], 512) == 768
    assert above(GRIDS[1], 3) == 4 and above(GRIDS[1], 100) == 105
    assert above(GRIDS[2], 4096) is None
