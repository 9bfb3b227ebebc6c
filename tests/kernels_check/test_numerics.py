"""The tolerances against brute force: right sums pass, 16-bit accumulators fail, non-finite parts are compared."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_check.numerics import Bound, compare, gamma, rounded_sum, tolerance

SEEDS = st.integers(0, 2**32 - 1)
STORED = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def terms(seed: int, rows: int, columns: int = 64) -> torch.Tensor:
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(seed)).double()


def one_by_one(values: torch.Tensor, accumulator: torch.dtype) -> torch.Tensor:
    total = torch.zeros(values.shape[1], dtype=accumulator)
    for row in values.to(accumulator):
        total = total + row
    return total


@given(seed=SEEDS, rows=st.integers(1, 400), stored=STORED)
@settings(max_examples=40, deadline=None)
def test_float32_accumulated_sums_pass_in_any_order(seed: int, rows: int, stored: torch.dtype) -> None:
    drawn = terms(seed, rows).to(stored).double()
    bound = Bound(steps=rows, magnitude=drawn.abs().sum(0))
    for order in (drawn, drawn.flip(0), drawn.sort(0).values):
        got = one_by_one(order, torch.float32).to(stored)
        assert compare(got, drawn.sum(0), bound, stored).error <= 1


@given(seed=SEEDS, rows=st.integers(256, 700))
@settings(max_examples=20, deadline=None)
def test_sums_accumulated_in_16_bits_fail(seed: int, rows: int) -> None:
    for narrow in (torch.bfloat16, torch.float16):
        drawn = terms(seed, rows).to(narrow).double()
        bound = Bound(steps=rows, magnitude=drawn.abs().sum(0))
        assert compare(one_by_one(drawn, narrow), drawn.sum(0), bound, narrow).error > 1


@given(seed=SEEDS, rows=st.integers(256, 700))
@settings(max_examples=20, deadline=None)
def test_sums_of_rounded_terms_pass_and_still_show_a_16_bit_accumulator(seed: int, rows: int) -> None:
    """Rounding every term first is allowed where the algorithm does it; the accumulator is still seen."""
    drawn = terms(seed, rows)
    bound = Bound(steps=rows, magnitude=drawn.abs().sum(0), rounded=rounded_sum(drawn, 0, drawn.shape[1]))
    right = one_by_one(drawn.to(torch.bfloat16), torch.float32).to(torch.bfloat16)
    wrong = one_by_one(drawn.to(torch.bfloat16), torch.bfloat16)
    assert compare(right, drawn.sum(0), bound, torch.bfloat16).error <= 1
    assert (
        compare(wrong, drawn.sum(0), bound, torch.bfloat16).error
        > compare(right, drawn.sum(0), bound, torch.bfloat16).error
    )


@given(seed=SEEDS, stored=STORED)
@settings(max_examples=30, deadline=None)
def test_one_rounding_is_half_a_unit_and_truncation_is_more(seed: int, stored: torch.dtype) -> None:
    exact = terms(seed, 64)
    bound = Bound(steps=1)
    assert compare(exact.to(stored), exact, bound, stored).error <= 1
    if stored != torch.float32:  # toward zero
        rounded = exact.to(stored)
        away = rounded.double().abs() > exact.abs()
        towards_zero = torch.where(away, torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)
        assert compare(towards_zero, exact, bound, stored).error > 1


def test_gamma_is_the_smaller_of_the_certain_and_the_likely_bound() -> None:
    unit = 2.0**-24
    assert gamma(1, unit, 1) == pytest.approx(unit)
    assert gamma(10**6, unit, 10**6) < 10**6 * unit / 50
    assert gamma(10**6, unit, 10**6) > math.sqrt(10**6) * unit
    assert gamma(100, unit, 10) < gamma(200, unit, 10) and gamma(10**6, unit, 10) < gamma(10**6, unit, 10**9)


def test_a_part_that_cancels_is_measured_by_its_terms() -> None:
    """1e8 - 1e8 + 1 in float32: an error of the terms' size is allowed, one of the result's size is not enough."""
    exact = torch.tensor([1.0]).double()
    got = torch.tensor([5.0])
    assert compare(got, exact, Bound(steps=2), torch.float32).error > 1
    assert compare(got, exact, Bound(steps=2, magnitude=torch.tensor([2e8]).double()), torch.float32).error <= 1


@pytest.mark.parametrize(
    ("got", "expected", "right"),
    [
        (math.nan, math.nan, True),
        (1.0, math.nan, False),
        (math.nan, 1.0, False),
        (math.inf, math.inf, True),
        (-math.inf, math.inf, False),
        (math.inf, 1.0, False),
        (math.inf, 70000.0, True),  # past float16's largest number
        (65504.0, 70000.0, False),
        (math.inf, 65503.0, True),  # the tolerance straddles the largest number
        (math.inf, -65503.0, False),
        (0.0, 1e-9, True),  # below half the smallest subnormal
    ],
)
def test_non_finite_values_must_be_where_the_reference_has_them(got: float, expected: float, right: bool) -> None:
    worst = compare(torch.tensor([got]).half(), torch.tensor([expected]).double(), Bound(steps=1), torch.float16)
    assert (worst.error <= 1) == right


def test_a_nan_elsewhere_does_not_hide_an_error() -> None:
    expected = torch.tensor([math.nan, 1.0, 2.0]).double()
    worst = compare(torch.tensor([math.nan, 1.0, 2.5]), expected, Bound(steps=1), torch.float32)
    assert worst.error > 1e5 and worst.index == (2,) and worst.got == 2.5


def test_shape_and_dtype_must_match() -> None:
    expected, bound = torch.zeros(3).double(), Bound(steps=1)
    assert compare(torch.zeros(4), expected, bound, torch.float32).reason == "shape (4,) instead of (3,)"
    assert "dtype torch.float16" in (compare(torch.zeros(3).half(), expected, bound, torch.float32).reason or "")
    stored = Bound(steps=1, dtype=torch.float32)
    assert compare(torch.zeros(3), expected, stored, torch.bfloat16).error == 0


def test_the_tolerance_of_a_zero_is_underflow_alone() -> None:
    assert float(tolerance(torch.zeros(1).double(), Bound(steps=9), torch.float16)) == 2.0**-25
    assert float(tolerance(torch.zeros(1).double(), Bound(steps=9), torch.bfloat16)) == 2.0**-126
