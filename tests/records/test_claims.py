"""Each published claim against data that bears it out, and against data that contradicts it."""

import importlib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kinji.errors import KinjiError
from kinji.experiments.cases import CASES
from kinji.records import Claim, Estimate, judge, judge_all, load_claims, verdict_table
from kinji.records.claims import VERDICTS, _decide
from kinji.records.layout import SCALES
from tests.records.claim_tables import imagenet_race, resnet50_table

CLAIMS = load_claims()
DECIDABLE = [claim for claim in CLAIMS if claim.metric]
ON_PRINTED_NUMBERS = imagenet_race.ON_PRINTED_NUMBERS | resnet50_table.ON_PRINTED_NUMBERS
FROM_TABLES = [claim for claim in DECIDABLE if claim.id not in ON_PRINTED_NUMBERS]


def tables(claim, side):
    module = importlib.import_module(f"tests.records.claim_tables.{claim.experiment}")
    return getattr(module, side)[claim.id].assign(scale=claim.scale, machine="test-machine", record="a")


def identified(claims):
    return pytest.mark.parametrize("claim", claims, ids=[claim.id for claim in claims])


@identified(FROM_TABLES)
def test_data_that_contradicts_a_claim_does_not_reproduce_it(claim):
    assert judge(claim, tables(claim, "CONTRADICTING")).verdict == "not reproduced"


@identified(FROM_TABLES)
def test_data_that_bears_a_claim_out_reproduces_it(claim):
    assert judge(claim, tables(claim, "SUPPORTING")).verdict in ("reproduced", "modelled")


@identified(FROM_TABLES)
def test_at_a_smaller_scale_only_the_trend_is_reproduced(claim):
    smaller = tables(claim, "SUPPORTING").assign(scale="smoke")
    expected = ("trend reproduced", "modelled") if claim.scale != "smoke" else ("reproduced", "modelled")
    assert judge(claim, smaller).verdict in expected


@identified(CLAIMS)
def test_without_data_nothing_is_claimed(claim):
    assert judge(claim, None).verdict == "not run"
    assert judge(claim, pd.DataFrame()).verdict == "not run"


@identified(FROM_TABLES)
def test_a_table_with_holes_costs_no_verdict_but_its_own(claim):
    holes = pd.DataFrame({"scale": ["smoke"], "machine": ["m"], "record": ["a"], "quantity": ["none"]})
    assert judge(claim, holes).verdict == "not run"


@identified(CLAIMS)
def test_a_claim_is_complete(claim):
    assert claim.experiment in CASES and claim.scale in SCALES
    assert claim.source and claim.statement and (claim.metric or claim.needs)


def test_at_least_twelve_claims_can_be_decided():
    assert len(DECIDABLE) >= 12
    assert {claim.experiment for claim in DECIDABLE} >= {"int8_dgemm", "h2_scaling", "resnet50_table", "step_breakdown"}


FINITE = st.floats(-10, 10)


@given(value=FINITE, wide=st.floats(0, 5), least=FINITE, most=FINITE, scale=st.sampled_from(SCALES))
def test_the_verdict_follows_from_interval_and_range(value, wide, least, most, scale):
    least, most = sorted((least, most))
    claim = Claim(
        id="c", experiment="e", source="s", statement="t", published="p", metric="m",
        scale="workstation", accept={"min": least, "max": most},
    )  # fmt: skip
    low, high = value - wide, value + wide
    verdict = _decide(claim, Estimate(value, low, high), scale)
    if high < least or low > most:
        assert verdict == "not reproduced"
    elif low < least or high > most:
        assert verdict == "inconclusive"
    else:
        assert verdict == ("trend reproduced" if scale == "smoke" else "reproduced")
    modelled = _decide(claim, Estimate(value, low, high, modelled=True), scale)
    assert modelled == ("modelled" if verdict.endswith("reproduced") and not verdict.startswith("not") else verdict)


def test_nan_is_no_measurement():
    claim = Claim(id="c", experiment="e", source="s", statement="t", published="p", scale="smoke", accept={"max": 1.0})
    assert _decide(claim, Estimate(float("nan"), float("nan"), float("nan")), "smoke") == "not run"


def test_every_claim_is_in_the_claims_table(repository):
    rows = verdict_table(judge_all("smoke"))
    assert list(rows["id"]) == [claim.id for claim in CLAIMS]
    assert set(rows["verdict"]) <= set(VERDICTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrik": "m"}, "unknown"),
        ({"metric": "m", "accept": None}, "needs `accept"),
        ({"id": CLAIMS[1].id if len(CLAIMS) > 1 else ""}, "two claims of one id"),
    ],
)
def test_a_wrong_claims_file_says_which_claim_and_key(repository, change, message):
    path = Path("paper/claims.yaml")
    entries = yaml.safe_load(path.read_text())
    entries[0] |= change
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(KinjiError, match=message):
        load_claims()
