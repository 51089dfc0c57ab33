from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinji.training import Schedule, linear_scaling

PUBLISHED = Schedule(
    peak_rate=3.0e-2,
    peak_momentum=0.97,
    start_epoch=1.5,
    end_epoch=49.5,
    power=3.5,
    coupling="proportional",
)


@given(st.floats(1.5, 49.5))
def test_rate_and_momentum_follow_the_published_formulas(epoch: float) -> None:
    rate = 3.0e-2 * (1 - (epoch - 1.5) / (49.5 - 1.5)) ** 3.5
    assert PUBLISHED.rate(epoch) == pytest.approx(rate)
    assert PUBLISHED.momentum(epoch) == pytest.approx(0.97 / 3.0e-2 * rate)


def test_the_decay_starts_at_the_peak_and_ends_at_zero() -> None:
    assert PUBLISHED.rate(0.0) == PUBLISHED.rate(1.5) == 3.0e-2
    assert PUBLISHED.momentum(0.0) == 0.97
    assert PUBLISHED.rate(49.5) == PUBLISHED.rate(60.0) == PUBLISHED.momentum(60.0) == 0.0


def test_a_constant_momentum_does_not_follow_the_rate() -> None:
    schedule = Schedule(peak_rate=0.1, peak_momentum=0.9, end_epoch=10)
    assert {schedule.momentum(epoch) for epoch in (0, 5, 9.5, 10)} == {0.9}


@given(st.floats(0, 5))
def test_the_warm_up_is_linear_in_the_rate_alone(epoch: float) -> None:
    schedule = Schedule(
        peak_rate=0.4, peak_momentum=0.9, warmup_epochs=5, start_epoch=5, end_epoch=9, coupling="proportional"
    )
    assert schedule.rate(epoch) == pytest.approx(0.4 * epoch / 5)
    assert schedule.momentum(epoch) == 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        {"end_epoch": 0.0},
        {"start_epoch": 10.0},
        {"start_epoch": -1.0},
        {"warmup_epochs": 2.0, "start_epoch": 1.0},
        {"peak_rate": 0.0},
        {"peak_rate": float("nan")},
        {"peak_momentum": 1.0},
        {"peak_momentum": float("nan")},
        {"coupling": "inverse"},
        {"warmup_rate": 0.2},
        {"steps": ((60.0, 0.1), (30.0, 0.01))},
        {"steps": ((3.0, -0.1),)},
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        Schedule(**({"peak_rate": 0.1, "peak_momentum": 0.9, "end_epoch": 10.0} | wrong))


def test_steps_take_the_place_of_the_polynomial() -> None:
    schedule = Schedule(
        peak_rate=3.2,
        peak_momentum=0.9,
        warmup_epochs=5,
        warmup_rate=0.2,
        start_epoch=5,
        end_epoch=90,
        steps=((30, 0.1), (60, 0.01)),
    )
    rates = [schedule.rate(epoch) for epoch in (0, 2.5, 5, 29.99, 30, 60, 100)]
    assert rates == pytest.approx([0.2, 1.7, 3.2, 3.2, 0.32, 0.032, 0.032])
    assert schedule.momentum(70) == 0.9


def test_the_linear_scaling_rule() -> None:
    assert linear_scaling(0.1, 8192) == pytest.approx(3.2)
    assert linear_scaling(0.4, 64, reference_batch=128) == pytest.approx(0.2)
