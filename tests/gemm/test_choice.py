import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm.choice import SLICES, UNIT_ROUNDOFF, Evidence, cheapest, reason, triangle
from kinji.gemm.error import loss_over_norms, scheme_one_bound, steps_over_norms
from kinji.gemm.moduli import MODULI, moduli

powers = st.floats(-40, 40).map(lambda x: 2.0**x)
evidence = st.builds(
    Evidence,
    inner=st.integers(1, 2**18),
    ratio=st.floats(0, 60).map(lambda x: 2.0**x) | st.just(math.inf),
    least=st.floats(-40, 0).map(lambda x: 2.0**x) | st.just(0.0),
    capacity=st.floats(-10, 200).map(lambda x: 2.0**x) | st.just(math.inf),
)


def left_out(scheme, count, of):
    """What a scheme leaves out at most, from the bounds themselves."""
    if scheme == "scheme_one":
        return scheme_one_bound(of.inner, count) / of.least / UNIT_ROUNDOFF if of.least else math.inf
    constants = moduli(count)
    if constants.capacity < of.capacity:
        return steps_over_norms(constants) * of.ratio / UNIT_ROUNDOFF
    return loss_over_norms(constants) * of.ratio / UNIT_ROUNDOFF if constants.loss else 0.0


def every_choice():
    yield from (("scheme_two", count, count, 1.0) for count in range(1, len(MODULI) + 1))
    yield from (("scheme_one", slices, triangle(slices), slices - 1.0) for slices in SLICES)


@given(evidence, powers, st.floats(0, 1))
def test_the_cheapest_of_all_that_keep_to_the_target_is_chosen(of, target, share):
    allowed = share * target
    enough = [
        products
        for scheme, count, products, rounding in every_choice()
        if left_out(scheme, count, of) <= (allowed if scheme == "scheme_two" else target - rounding)
    ]
    choice = cheapest(of, target, allowed)
    if choice is None:
        assert not enough
        return
    assert choice.products == min(enough)
    assert (choice.scheme, choice.count, choice.products, choice.rounding) in every_choice()
    assert choice.truncation == pytest.approx(left_out(choice.scheme, choice.count, of), rel=1e-12)


@given(evidence, powers, powers)
def test_sharper_evidence_and_looser_targets_never_take_more_products(of, target, factor):
    def products(evidence, target):
        choice = cheapest(evidence, target, target / 2)
        return choice.products if choice else math.inf

    here = products(of, target)
    assert products(of, target * max(factor, 1)) <= here
    assert products(replace(of, ratio=of.ratio / max(factor, 1)), target) <= here
    assert products(replace(of, least=of.least * max(factor, 1)), target) <= here


def test_the_reason_tells_what_is_in_the_way():
    hidden = Evidence(inner=10, ratio=math.inf, least=0.0, capacity=math.inf)
    assert "too far below its row's and column's greatest" in reason(hidden, 3.0)
    assert reason(hidden, 3.0).startswith("error=3: ")
    wide = replace(hidden, ratio=2.0**40, least=2.0**-40)
    proved = steps_over_norms(moduli(20)) * 2.0**93
    assert f"20 moduli are proved to leave out no more than {proved:.3g}" in reason(wide, 3.0)
    assert f"18 slices than {scheme_one_bound(10, 18) * 2.0**93:.3g}" in reason(wide, 3.0)
