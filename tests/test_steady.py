"""The start of the steady state on made-up series whose start is known, and on the recorded ones."""

from pathlib import Path

import numpy as np
import pytest

from bench.steady import MIN_STEPS, steady
from bench.store import load

RESULTS = Path(__file__).parent.parent / "results"


def series(steps: int, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    return 1 + np.random.default_rng(seed).normal(0, noise, steps)


def test_slow_beginning_is_cut() -> None:
    steps = series(200)
    steps[:23] += 1
    found = steady(steps.tolist(), floor=2)
    assert (found.first, found.settled) == (25, True)


def test_floor_stands_where_it_is_higher() -> None:
    steps = series(200)
    steps[0] = 30
    assert steady(steps.tolist(), floor=20).first == 20
    assert steady(steps.tolist(), floor=0).first == 5


def test_series_that_falls_all_along_has_not_settled() -> None:
    steps = series(200) * np.linspace(2, 1, 200)
    found = steady(steps.tolist(), floor=5)
    assert found.first <= 100
    assert found.settled is False


def test_series_that_slows_down_late_has_not_settled() -> None:
    steps = series(250) * np.linspace(1, 1.3, 250)
    assert steady(steps.tolist(), floor=5).settled is False


def test_steady_series_is_seldom_called_unsettled() -> None:
    settled = [steady(series(250, seed=seed).tolist(), floor=5).settled for seed in range(200)]
    assert settled.count(False) <= 12


def test_short_series_keeps_its_floor_and_says_nothing_of_settling() -> None:
    found = steady(series(MIN_STEPS - 1).tolist(), floor=5)
    assert (found.first, found.settled) == (5, None)
    assert steady([], floor=5).first == 5


def test_late_compilation_in_a_short_series_is_warm_up() -> None:
    steps = series(20)
    steps[0], steps[7] = 25, 12
    assert steady(steps.tolist(), floor=5).first == 8


def test_slow_step_in_the_second_half_is_kept() -> None:
    steps = series(20)
    steps[12] = 12
    assert steady(steps.tolist(), floor=5).first == 5


@pytest.mark.parametrize("item", load(RESULTS)[0], ids=lambda item: item.folder.name)
def test_recorded_series_settle_at_their_floor(item: object) -> None:
    cell, walls = item.record.cell, item.record.steps.wall_s  # type: ignore[attr-defined]
    if not walls:
        pytest.skip("no step ran")
    found = steady(walls, floor=cell.untimed_steps)
    assert cell.untimed_steps <= found.first <= max(cell.untimed_steps, len(walls) // 2)
    assert (found.settled is None) == (len(walls) < MIN_STEPS)
