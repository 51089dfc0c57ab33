"""The modelled rows of a step: complete, consistent, and without measurement."""

import pandas as pd
import pytest

from kinji.experiments.cases import StepBreakdownCase
from kinji.experiments.step_breakdown.model import GPUS, model
from kinji.records import load_claims, load_reference
from kinji.records.metrics import step_breakdown as metrics


def rows(**options):
    case = StepBreakdownCase(ranks=1, pixels=224, batch_per_rank=32, **options)
    return pd.DataFrame([row | {"network": case.network} for row in model(case)])


@pytest.fixture(scope="module")
def table():
    return rows(fabric="abci")


def test_every_published_step_is_predicted_with_trees_and_with_rings(table):
    predicted = table[table["quantity"] == "predicted step"]
    assert predicted["between_nodes"].value_counts().to_dict() == {"halving": 48, "ring": 48}
    published = load_reference()["step_breakdown_variants"]["seconds_per_step"].tolist()
    assert predicted[predicted["between_nodes"] == "halving"]["seconds_per_step"].tolist() == published


def test_steps_to_2048_gpus_agree_with_the_predictions(table):
    steps = metrics.modelled_steps(table, "K-FAC", metrics.SAMPLED)
    assert tuple(steps.index) == GPUS
    predicted = table[(table["quantity"] == "predicted step") & (table["between_nodes"] == "halving")]
    same = predicted[(predicted["fisher"] == "sampled") & (predicted["batch_norm"] == "full")]
    assert steps.sum(axis=1).loc[same["gpus"]].tolist() == pytest.approx(same["modelled_seconds"].tolist())
    assert list(metrics.stale_steps(table).index) == [128, 256, 512, 1024]


def test_every_claim_on_the_model_can_be_decided(table):
    ours = [c for c in load_claims() if c.experiment == "step_breakdown"]
    claims = [c for c in ours if c.metric and c.metric.startswith("model")]
    estimates = {claim.id: getattr(metrics, str(claim.metric))(table) for claim in claims}
    assert len(estimates) == 7 and all(e and e.modelled and e.low <= e.value <= e.high for e in estimates.values())


def test_a_slower_fabric_is_slower_and_predicts_the_published_machine_alike(table):
    other = rows(fabric="ethernet")
    for frame in (table, other):
        assert (frame["quantity"] == "fitted rate").sum() == 6
    slow, fast = (metrics.modelled_steps(t, "SGD", {}).sum(axis=1) for t in (other, table))
    assert (slow.drop(1) > fast.drop(1)).all() and slow[1] == pytest.approx(fast[1])
    assert metrics.model_error(other) == metrics.model_error(table)


def test_an_unknown_fabric_is_named():
    with pytest.raises(ValueError, match="Did you mean 'ethernet'"):
        rows(fabric="ethernets")
