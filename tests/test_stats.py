"""Ratios, verdicts and memory spread against scipy and hand-made numbers; error rates against simulated experiments."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_ind

from bench import simulation
from bench.record import Record
from bench.stats import ALPHA, GRANULE_BYTES, MARGIN, Ratio, adjust, ratio, spread, verdict
from bench.store import load
from tests.synthetic import record

FAST, SLOW = [103.0, 104.0, 102.5, 103.5], [100.0, 101.0, 99.5, 100.5]
RESULTS = Path(__file__).parent.parent / "results"


def interval_of(found: Ratio, level: float = 1 - ALPHA) -> tuple[float, float]:
    interval = found.interval(level)
    assert interval is not None
    return interval


# ---- ratio ----------------------------------------------------------------------------------------------------------


def test_value_is_the_ratio_of_medians_and_the_interval_is_welch_on_logarithms() -> None:
    found = ratio([120.0, 100.0, 110.0], [50.0, 52.0, 40.0, 51.0])
    reference = ttest_ind(np.log([120, 100, 110]), np.log([50, 52, 40, 51]), equal_var=False)
    assert found.value == 110 / 50.5
    assert (found.numerators, found.denominators) == (3, 4)
    assert found.p_value == pytest.approx(reference.pvalue)
    for level in (0.95, 0.99):
        expected = reference.confidence_interval(level)
        assert interval_of(found, level) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))


@given(scale=st.floats(1e-3, 1e6), values=st.lists(st.floats(0.5, 2.0), min_size=6, max_size=12))
@settings(max_examples=20, deadline=None)
def test_units_do_not_matter_and_swapping_sides_inverts(scale: float, values: list[float]) -> None:
    first, second = values[:3], values[3:]
    found, scaled, swapped = (
        ratio(first, second), ratio([scale * v for v in first], [scale * v for v in second]), ratio(second, first)
    )  # fmt: skip
    low, high = interval_of(found)
    assert interval_of(scaled) == pytest.approx((low, high), rel=1e-6)
    assert interval_of(swapped) == pytest.approx((1 / high, 1 / low), rel=1e-6)


@pytest.mark.parametrize(
    ("numerators", "denominators", "why"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0], "2 of at least 3 processes a side"),
        ([1.0], [1.0], "1 of at least 3 processes a side"),
        ([], [1.0], "a side has no process"),
        ([1.0, 0.0, 2.0], [1.0, 2.0, 3.0], "a value is not a number above 0"),
        ([1.0, math.nan, 2.0], [1.0, 2.0, 3.0], "a value is not a number above 0"),
    ],
)
def test_too_little_gives_no_interval_and_says_why(
    numerators: list[float], denominators: list[float], why: str
) -> None:
    found = ratio(numerators, denominators)
    assert (found.interval(), found.p_value, found.mde, found.why) == (None, None, None, why)
    assert verdict(found) == "inconclusive"


def test_two_processes_still_have_a_ratio() -> None:
    assert ratio([4.0, 6.0], [2.0, 3.0, 4.0]).value == 5 / 3


def test_constant_sides_are_exact() -> None:
    equal, double = ratio([8.0] * 3, [8.0] * 3), ratio([16.0] * 3, [8.0] * 3)
    assert (interval_of(equal), equal.p_value, verdict(equal)) == ((1, 1), 1.0, "same")
    assert (interval_of(double), double.p_value) == (pytest.approx((2, 2)), 0.0)


@pytest.mark.parametrize("processes", [4, 40])
def test_mde_is_found_with_the_stated_power(processes: int) -> None:
    rng, deviation, count = np.random.default_rng(9), 0.02, 2000
    # A group whose standard deviation is exactly the true one: its mde is that of the design, not of one sample.
    wave = np.resize([1.0, -1.0], processes)
    exact = np.exp(wave * deviation / wave.std(ddof=1))
    mde = ratio(exact.tolist(), exact.tolist()).mde
    assert mde is not None
    logs = rng.normal(0, deviation, (2, count, processes))
    found = int(np.sum(ttest_ind(logs[0] + np.log1p(mde), logs[1], axis=1, equal_var=False).pvalue < ALPHA))
    assert binomtest(found, count, 0.8).pvalue > 0.001


# ---- verdict --------------------------------------------------------------------------------------------------------


def test_directions() -> None:
    assert verdict(ratio(FAST, SLOW)) == "faster"
    assert verdict(ratio(SLOW, FAST)) == "slower"
    assert verdict(ratio([100.0, 110.0, 90.0], [100.0, 112.0, 91.0])) == "inconclusive"


def test_same_takes_precedence_over_an_interval_that_excludes_one() -> None:
    found = ratio([101.0, 101.01, 100.99], [100.0, 100.01, 99.99])
    low, high = interval_of(found)
    assert low > 1 and high < 1 + MARGIN
    assert verdict(found) == "same"
    assert verdict(found, margin=0.005) == "faster"


def test_margin_is_alike_for_both_directions() -> None:
    up = ratio([101.5, 101.51, 101.49], [100.0, 100.01, 99.99])
    down = ratio([100.0, 100.01, 99.99], [101.5, 101.51, 101.49])
    assert [verdict(r, margin=0.016) for r in (up, down)] == ["same", "same"]
    assert (verdict(up, margin=0.014), verdict(down, margin=0.014)) == ("faster", "slower")


def test_direction_must_survive_the_adjustment_for_many_findings() -> None:
    found = ratio(FAST, SLOW)
    assert verdict(found, p_value=ALPHA) == "faster"
    assert verdict(found, p_value=ALPHA * 1.01) == "inconclusive"


def test_stricter_alpha_widens() -> None:
    found = ratio([104.0, 105.5, 102.5], [100.0, 101.0, 99.0])
    assert (verdict(found, alpha=0.05), verdict(found, alpha=0.001)) == ("faster", "inconclusive")


def test_holm() -> None:
    assert adjust([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert adjust([None]) == [None]
    assert adjust([]) == []


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_spread_within_one_granule_is_deterministic() -> None:
    peak = 20_354_957_312
    assert spread([peak, peak + GRANULE_BYTES, peak]).deterministic is True
    wide = spread([peak + GRANULE_BYTES + 1, peak, peak + 10])
    assert (wide.minimum, wide.median, wide.maximum) == (peak, peak + 10, peak + GRANULE_BYTES + 1)
    assert wide.deterministic is False
    assert spread([peak]).deterministic is None


# ---- error rates, simulated from recorded noise (reduced; python -m bench.simulation runs the whole) ----------------


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    records = [item.record for item in load(RESULTS)[0] if item.record.status == "ok" and item.record.steps.wall_s]
    assert records
    return {r.cell.slug: simulation.steady_steps(r) for r in records}


@pytest.mark.parametrize("processes", [6, 8])
def test_a_record_against_itself_is_called_faster_or_slower_in_no_more_than_1_percent(
    recorded: dict[str, np.ndarray], processes: int
) -> None:
    found: Counter[str] = Counter()
    for seed, steps in enumerate(recorded.values()):
        found.update(simulation.experiments(steps, processes=processes, between=0.005, slowdown=0, count=50, seed=seed))
    false = found["faster"] + found["slower"]
    assert binomtest(false, found.total(), ALPHA, alternative="greater").pvalue > 0.001


def test_a_3_percent_slowdown_of_the_8b_nf4_run_is_found_in_95_percent_with_6_processes(
    recorded: dict[str, np.ndarray],
) -> None:
    steps = next(s for slug, s in recorded.items() if slug.startswith("llama-3.1-8b-lora-r16-nf4-hf-peft"))
    found = simulation.experiments(steps, processes=6, between=0.0025, slowdown=0.03, count=200, seed=0)
    assert found["slower"] >= 190
    assert found["faster"] == 0
    noisier = simulation.experiments(steps, processes=6, between=0.03, slowdown=0.03, count=200, seed=0)
    assert noisier["slower"] < 60  # and where processes differ by 3 %, it is not


def test_largest_spread_is_where_the_power_falls_below_95_percent() -> None:
    limit = simulation.largest_spread(6)
    assert binomtest(round(1000 * simulation.power(limit, 6, 0.03, 1000)), 1000, 0.95).pvalue > 0.001
    assert simulation.power(1.5 * limit, 6, 0.03, 200) < 0.8


def test_percentile_bootstrap_covers_too_little_where_welch_does_not() -> None:
    pool = np.random.default_rng(0).normal(0, 0.01, 1000)
    covered = simulation.coverage(simulation.noises(pool)["normal, 1 %"], 3, 300)
    assert covered["bootstrap, percentile"][1] < 0.95
    assert covered["Welch's t"][1] > 0.975


def test_drift_never_makes_welch_call_a_difference_but_costs_power() -> None:
    first, second = simulation.drifted(np.random.default_rng(0), 1000, 6, 0.01, 0.01)
    assert np.mean(ttest_ind(first, second, axis=1, equal_var=False).pvalue < ALPHA) < 0.001
    assert simulation.power_under_drift(0.005, count=500)[0] < simulation.power_under_drift(0, count=500)[0] - 0.2


def test_blocks_keep_the_mean_and_the_correlation_of_neighbouring_steps() -> None:
    alternating = np.array([1.0, 3.0] * 50)
    rates = simulation.process_rates(alternating, (500,), np.random.default_rng(0))
    assert rates.std() < 0.02  # single steps drawn at random would spread by 0.05
    assert 1 / rates.mean() == pytest.approx(2.0, rel=0.01)


def test_measured_between_recovers_the_spread_put_in() -> None:
    rng = np.random.default_rng(3)

    def run(serial: int, factor: float) -> Record:
        steps = tuple(factor * rng.normal(1.0, 0.01, 40))
        return record(step_s=steps, serial=serial)

    spread_in = 0.02
    runs = [run(i, math.exp(rng.normal(0, spread_in))) for i in range(40)]
    (value,) = simulation.measured_between(runs).values()
    assert 0.7 * spread_in < value < 1.4 * spread_in
    (none,) = simulation.measured_between([run(i, 1.0) for i in range(40)]).values()
    assert none < 0.001
    assert simulation.measured_between(runs[:2]) == {}
