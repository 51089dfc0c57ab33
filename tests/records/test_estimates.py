import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinji.records import growth_exponent, median_estimate

SIZES = [1024, 2048, 4096, 8192]


@given(st.floats(-3, 3), st.floats(1e-6, 1e6))
def test_a_power_law_gives_its_exponent(power, factor):
    estimate = growth_exponent(SIZES, [factor * n**power for n in SIZES])
    assert estimate.value == pytest.approx(power, abs=1e-9)
    assert estimate.high - estimate.low < 1e-6


def test_the_interval_of_a_noisy_power_law_holds_its_exponent_about_95_times_in_100():
    rng = np.random.default_rng(0)
    fits = [growth_exponent(SIZES, np.array(SIZES) ** 1.5 * np.exp(rng.normal(0, 0.1, 4))) for _ in range(400)]
    assert 0.92 < np.mean([fit.low <= 1.5 <= fit.high for fit in fits]) < 0.98


@pytest.mark.parametrize("costs", [[1, 2, 3, float("nan")], [1, 2, 0, 4]])
def test_costs_without_a_logarithm_are_refused(costs):
    with pytest.raises(ValueError, match="positive costs"):
        growth_exponent(SIZES, costs)


def test_two_sizes_fit_no_exponent():
    with pytest.raises(ValueError, match="three sizes"):
        growth_exponent([1, 2, 2], [1, 2, 2])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_the_median_lies_in_its_interval_and_the_interval_in_the_sample(values):
    estimate = median_estimate(values)
    assert min(values) <= estimate.low <= estimate.value <= estimate.high <= max(values)


def test_a_median_of_nothing_is_refused():
    with pytest.raises(ValueError, match="finite values"):
        median_estimate([])
