"""The fit recovers what made the data, and the hold-out does not see what is held out."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kinji.cost import Plan, Rates, find_fabric, fit, predict
from kinji.cost.fit import V100_FP32_FLOPS, V100_MEMORY_BYTES, Observation
from kinji.cost.validation import calibrate, held_out_errors, hold_out, published_counts
from kinji.records import load_reference

COUNTS = published_counts()
REFERENCE = load_reference()
VARIANTS, SPNGD = REFERENCE["step_breakdown_variants"], REFERENCE["resnet50_spngd"]
TRUTH = {
    "pass_flops": 9e12,
    "product_flops": 22e12,
    "half_size": 3000.0,
    "matrix_seconds": 2e-3,
    "efficiency": 0.05,
    "latency": 2e-3,
}


@pytest.fixture(scope="module")
def predicted():
    return hold_out(VARIANTS, SPNGD)


def made_up(noise=0.0):
    """Steps on a slow fabric, so that every parameter matters."""
    rates = Rates(
        inverse_flops=V100_FP32_FLOPS,
        memory_bytes=V100_MEMORY_BYTES,
        **{name: TRUTH[name] for name in ("pass_flops", "product_flops", "half_size", "matrix_seconds")},
    )
    fabric = find_fabric("abci").attained(TRUTH["efficiency"], TRUTH["latency"])
    random = np.random.default_rng(0)
    for batch_norm in ("unit-wise", "full"):
        for fisher in ("empirical", "sampled"):
            for gpus in (1, 2, 4, 8, 16, 32, 64, 512):
                plan = Plan(fisher=fisher, batch_norm=batch_norm)
                seconds = predict(COUNTS, plan, gpus, fabric, rates).seconds
                yield Observation(gpus, plan, seconds * np.exp(noise * random.standard_normal()))


def test_the_fit_recovers_the_rates_that_made_the_data():
    found = fit(list(made_up()), COUNTS, find_fabric("abci"), relative_error=1e-3).parameters
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(TRUTH, rel=0.01)


def test_with_noise_it_recovers_them_within_what_it_states():
    found = fit(list(made_up(noise=0.02)), COUNTS, find_fabric("abci"), relative_error=0.02).parameters
    for name, truth in TRUTH.items():
        value, deviation = found[name]
        assert abs(np.log(value / truth)) < 3 * deviation < 1, name


def test_held_out_steps_change_nothing(predicted):
    spoilt = VARIANTS.copy()
    spoilt.loc[spoilt["gpus"] > 32, "seconds_per_step"] *= 100
    again = hold_out(spoilt, SPNGD)
    assert again["modelled_seconds"].tolist() == predicted["modelled_seconds"].tolist()
    assert again["last_seconds"].tolist() == predicted["last_seconds"].tolist()


def test_fitted_steps_change_the_fit():
    spoilt = VARIANTS.copy()
    spoilt.loc[spoilt["gpus"] == 1, "seconds_per_step"] *= 2
    assert calibrate(spoilt, SPNGD).rates != calibrate(VARIANTS, SPNGD).rates


def test_all_published_points_are_there(predicted):
    assert len(predicted) == 48 and predicted["held_out"].sum() == 24
    assert not (predicted["stale"] & ~predicted["held_out"]).any()


def test_the_model_predicts_what_it_has_not_seen(predicted):
    errors = held_out_errors(predicted)
    assert len(errors) == 5
    assert (errors["model"] < 0.15).all() and (errors["model"] < errors["last value"]).all()


def test_errors_by_hand():
    table = pd.DataFrame(
        {
            "fisher": "empirical",
            "batch_norm": "full",
            "stale": False,
            "seconds_per_step": [1.0, 1.0, 1.0, 1.0],
            "modelled_seconds": [9.0, 1.1, 0.8, 1.3],
            "last_seconds": [1.0, 1.5, 1.6, 1.0],
            "held_out": [False, True, True, True],
        }
    )
    assert held_out_errors(table).to_numpy().tolist() == [[pytest.approx(0.2), pytest.approx(0.5)]]


def test_fitted_numbers_are_physical():
    parameters = {name: value for name, (value, _) in calibrate(VARIANTS, SPNGD).parameters.items()}
    assert 3e12 < parameters["pass_flops"] < 15.7e12 and 5e12 < parameters["product_flops"] < 125e12
    assert 0 < parameters["efficiency"] <= 1 and parameters["matrix_seconds"] < 0.01


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_that_takes_no_time_is_refused(seconds):
    with pytest.raises(ValueError, match="positive, finite"):
        fit([Observation(1, Plan(), seconds)], COUNTS, find_fabric("abci"))
    with pytest.raises(ValueError, match="positive, finite"):
        fit([], COUNTS, find_fabric("abci"))


def test_a_ring_between_nodes_is_slower_at_scale():
    abci = find_fabric("abci")
    seconds = [replace(abci, algorithm=algorithm).reduce_scatter(1e6, 1024) for algorithm in ("halving", "ring")]
    assert seconds[0] < seconds[1]
