"""Bisection and the sequential looks."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from bench.errors import InputError
from bench.regress import bisect
from bench.regress.sequential import LOOKS, MOST, Change, look, pairs_until, simulate

VERSIONS = [str(number) for number in range(20)]


@pytest.mark.parametrize("planted", range(1, 17))
def test_the_first_bad_of_16_releases_is_found_in_four_checks(planted: int) -> None:
    found = bisect.search(VERSIONS, "0", "16", lambda v: int(v) >= planted, lambda text: None)
    assert (found.first_with, found.last_without) == (str(planted), str(planted - 1)) and found.checks <= 4


def test_releases_that_cannot_be_checked_are_passed_by_and_named() -> None:
    def changed(version: str) -> bool:
        if version in ("7", "8", "9"):
            raise bisect.CannotCheck("does not import")
        return int(version) >= 9

    found = bisect.search(VERSIONS, "0", "16", changed, lambda text: None)
    assert (found.last_without, found.first_with) == ("6", "10")
    assert set(found.skipped) == set(found.between) == {"7", "8", "9"}


@pytest.mark.parametrize(("good", "bad", "field"), [("x", "3", "--good x"), ("0", "x", "--bad x"), ("3", "1", "--bad")])
def test_wrong_ends_are_named(good: str, bad: str, field: str) -> None:
    with pytest.raises(InputError) as told:
        bisect.search(VERSIONS, good, bad, lambda v: True, lambda text: None)
    assert told.value.where == field


def test_the_shares_of_alpha_add_up_to_one() -> None:
    assert sum(LOOKS.values()) == pytest.approx(1)


def shares(*of: Change, effect: float, at: int = MOST, **setting: Any) -> float:
    """Share of simulated comparisons that ended so, after at most ``at`` pairs."""
    found = simulate(effect, margin=0.02, **setting)
    return sum(one.change in of and one.pairs <= at for one in found) / len(found)


def test_false_alarms_stay_at_one_percent_also_when_the_machine_drifts() -> None:
    for drift in (0.0, 0.01):
        alarms = shares("more", "less", effect=0.0, spread=0.02, drift=drift, runs=2000)
        assert alarms <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 2000)


def test_five_percent_is_found_and_no_change_is_settled() -> None:
    assert shares("less", effect=-0.05, spread=0.01, runs=300) >= 0.95
    assert shares("same", effect=0.0, spread=0.004, runs=300) >= 0.95


def test_gpu_time_is_mostly_settled_at_the_first_look_and_within_what_ten_minutes_hold() -> None:
    """A spread of 0.25 % between processes, as measured, with the weight of a metric of speed."""
    setting = {"spread": 0.0025, "weight": 0.4, "runs": 500}
    assert shares("same", effect=0.0, at=4, **setting) > 0.5
    assert shares("same", effect=0.0, at=5, **setting) > 0.8
    assert shares("same", effect=0.0, at=6, **setting) > 0.95
    assert shares("more", effect=0.03, at=4, **setting) > 0.85
    assert shares("more", effect=0.05, at=4, **setting) > 0.98


def test_the_documented_table_is_what_the_simulation_gives() -> None:
    text = (Path(__file__).parents[2] / "docs" / "regress.md").read_text(encoding="utf-8")
    rows = [[float(n) for n in re.findall(r"[-+]?[\d.]+", line)] for line in text.splitlines()
            if re.match(r"\| [-+\d.]+ % \|", line)]  # fmt: skip
    assert len(rows) == 9
    for effect, spread, drift, weight, *told, opened, pairs in rows:
        setting = {"spread": spread / 100, "drift": drift / 100, "weight": weight, "margin": 0.02}
        found = simulate(effect / 100, runs=4000, **setting)  # type: ignore[arg-type]
        counted = [
            100 * sum(one.change in of and one.pairs <= at for one in found) / len(found)
            for at in LOOKS for of in (("more", "less"), ("same",))
        ]  # fmt: skip
        assert counted == pytest.approx(told, abs=0.06)
        assert 100 * sum(one.change == "open" for one in found) / len(found) == pytest.approx(opened, abs=0.06)
        assert sum(one.pairs for one in found) / len(found) == pytest.approx(pairs, abs=0.06)


def test_what_is_plain_stops_at_the_first_look_and_between_looks_nothing_is_decided() -> None:
    assert pairs_until(lambda pair: 0.5 + 0.001 * (pair % 2), 0.02).pairs == min(LOOKS)
    assert look([0.5, 0.5, 0.5], 0.02).change == "open"
    assert look([0.5, 0.501, 0.5, 0.501], 0.02).mde < 0.02


def test_a_few_alike_pairs_with_a_constant_ratio_are_decided_without_a_spread() -> None:
    found = look([math.log(1.05)] * 4, 0.02)
    assert found.change == "more" and found.low == pytest.approx(0.05) == found.high
