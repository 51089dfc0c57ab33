import pandas as pd
import pytest

from kinji.records import judge, load_claims, load_reference
from kinji.records.metrics import imagenet_race as metrics
from tests.records.claim_tables.imagenet_race import modelled

ANY_TABLE = pd.DataFrame({"scale": ["smoke"], "machine": ["test-machine"], "record": ["a"]})
CLAIMS = {claim.id: claim for claim in load_claims()}
SPNGD, FASTEST, SIXTY_FOUR_EPOCHS = ("optimizer", "SP-NGD"), ("work", "Yamazaki 2019"), ("minutes", 14)


def test_printed_throughput_is_batch_over_devices_and_seconds():
    rows = metrics.history().dropna(subset=["seconds_per_iteration"])
    derived = rows["batch"] / rows["devices"] / rows["seconds_per_iteration"]
    assert (derived - rows["images_per_second_and_device"]).abs().max() < 1


def test_every_row_has_a_source_and_a_speed_up():
    rows = metrics.history()
    assert rows[["source", "kind", "speed_up"]].notna().all().all()
    assert rows.set_index("devices").loc[8, "speed_up"] == 1


@pytest.mark.parametrize(
    ("claim", "row", "column", "good", "bad"),
    [
        ("race-fewer-steps", SPNGD, "minutes", 5.5, 11),
        ("race-fewer-images-a-second", SPNGD, "images_per_second_and_device", 171, 900),
        ("race-fastest", SPNGD, "minutes", 1.1, 5.5),
        ("race-first-order-90-epochs", SIXTY_FOUR_EPOCHS, "minutes", 20, 14),
    ],
)
def test_claims_on_printed_numbers_follow_the_printed_numbers(monkeypatch, claim, row, column, good, bad):
    for value, verdict in ((good, "reproduced"), (bad, "not reproduced")):
        reference = load_reference()
        history = reference["resnet50_history"]
        history[column] = history[column].astype(float)
        history.loc[history[row[0]] == row[1], column] = value
        monkeypatch.setattr(metrics, "load_reference", lambda given=reference: given)
        assert judge(CLAIMS[claim], ANY_TABLE).verdict == verdict


def test_on_one_machine_the_ratio_is_steps_times_seconds():
    ours = metrics.modelled_minutes_over_sgd(modelled(sgd=0.1, stale=0.12, fresh=(1.0, 1.0)))
    steps = 60 * 5.5 / 0.187
    assert ours.value == pytest.approx(steps * 0.12 / (90 * 1_281_167 / 32768 * 0.1))
    assert (ours.low, ours.high) == pytest.approx((0.9 * ours.value, 1.1 * ours.value)) and ours.modelled
