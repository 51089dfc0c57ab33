import pandas as pd
import pytest
from torch import nn

from kinji.training import PRESETS, ResidualNetwork, build_optimizer
from kinji.training.presets import IMAGENET_IMAGES

TABLE = "paper/reference/resnet50_spngd.csv"


def test_presets_of_sp_ngd_are_the_published_table(pytestconfig: pytest.Config) -> None:
    table = pd.read_csv(pytestconfig.rootpath / TABLE, comment="#")
    for row in table.itertuples():
        preset = PRESETS[f"sp-ngd-{row.batch}"]
        schedule = preset.schedule
        assert (preset.batch, preset.mixup, preset.options["damping"]) == (row.batch, row.mixup, row.damping)
        assert (schedule.power, schedule.start_epoch, schedule.end_epoch) == (
            row.decay_power,
            row.start_epoch,
            row.end_epoch,
        )
        assert (schedule.peak_rate, schedule.peak_momentum) == (row.lr, row.momentum)
        assert preset.epochs == pytest.approx(row.iterations * row.batch / IMAGENET_IMAGES, rel=0.01)
    assert len(table) == sum(name.startswith("sp-ngd") for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_its_optimizer(name: str) -> None:
    preset = PRESETS[name]
    model: nn.Module = ResidualNetwork((2,))
    rates = {"lr": preset.schedule.peak_rate, "momentum": preset.schedule.peak_momentum}
    optimizer = build_optimizer(preset.optimizer, model, **rates, **preset.options)
    assert optimizer.param_groups[0]["lr"] == preset.schedule.peak_rate
    assert preset.schedule.end_epoch >= preset.epochs
    assert preset.augmentation(1000).mixup == preset.mixup


def test_the_published_first_order_recipes_scale_with_the_batch() -> None:
    goyal, akiba = PRESETS["goyal-8192"].schedule, PRESETS["akiba-32768"].schedule
    assert [goyal.rate(epoch) for epoch in (0, 2.5, 5, 29.9, 30, 60, 85)] == pytest.approx(
        [0.1, 1.65, 3.2, 3.2, 0.32, 0.032, 0.0032]
    )
    assert [akiba.rate(epoch) for epoch in (0, 39.9, 40, 70, 85)] == pytest.approx([6.4, 6.4, 0.96, 0.128, 0.0128])
