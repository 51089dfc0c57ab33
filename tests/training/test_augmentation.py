from typing import Any

import pytest
import torch
from torch import Tensor

from kinji.training import Augmentation, BatchAugmentation
from kinji.training.augmentation import MixupRule, erased


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(count: int, size: int = 6, classes: int = 5) -> list[tuple[Tensor, Tensor]]:
    chance = generator(1)
    return [
        (torch.randn(size, 3, 8, 8, generator=chance), torch.randint(classes, (size,), generator=chance))
        for _ in range(count)
    ]


@pytest.mark.parametrize("rule", ["published", "released"])
def test_running_mixup_is_its_recursion_unrolled(rule: MixupRule) -> None:
    """x~(t) = sum_s w_s x(s) with the weights of the shares read off the targets of one class a batch."""
    mix = BatchAugmentation(classes=4, mixup=0.4, mixup_rule=rule)
    chance, inputs = generator(), [pixels for pixels, _ in batches(4)]
    for t, x in enumerate(inputs):
        pixels, targets = mix(x, torch.full((6,), t), chance)
        expected = sum(targets[:, s, None, None, None] * inputs[s] for s in range(t + 1))
        torch.testing.assert_close(pixels, expected)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
        if t > 0:
            assert len(targets[:, t].unique()) == 6  # a share per image
        if rule == "released":
            assert (targets[:, t] >= 0.5).all()


def test_shares_follow_the_beta_distribution() -> None:
    mix = BatchAugmentation(classes=2, mixup=0.4)
    pixels, chance = torch.zeros(20_000, 1, 1, 1), generator()
    mix(pixels, torch.zeros(20_000, dtype=torch.int64), chance)
    _, targets = mix(pixels, torch.ones(20_000, dtype=torch.int64), chance)
    assert targets[:, 1].mean() == pytest.approx(0.5, abs=0.01)
    assert targets[:, 1].var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.003)


def test_batches_of_other_sizes_mix_what_they_share() -> None:
    mix = BatchAugmentation(classes=5, mixup=1.0)
    chance, ((first, labels), (second, _), (x, _)) = generator(), batches(3)
    mix(first, labels, chance)
    mix(second[:2], labels[:2], chance)
    pixels, _ = mix(x, labels, chance)
    assert torch.equal(pixels[2:], x[2:])
    assert not torch.equal(pixels[:2], x[:2])


def test_erasing_sets_rectangles_of_the_published_areas_and_sides_to_zero() -> None:
    ones = torch.ones(2000, 1, 64, 64)
    gone = erased(ones, 0.5, generator())[:, 0] == 0
    assert ones.min() == 1
    hit = gone[gone.any(dim=(1, 2))]
    assert len(hit) / 2000 == pytest.approx(0.5, abs=0.03)
    rows, columns = hit.any(dim=2).sum(dim=1), hit.any(dim=1).sum(dim=1)
    area = hit.sum(dim=(1, 2)).double()
    assert torch.equal(area, (rows * columns).double())  # no gap: a rectangle
    assert 0.015 < area.min() / 64**2 < 0.03
    assert 0.23 < area.max() / 64**2 < 0.27
    assert (area / 64**2).mean() == pytest.approx(0.135, abs=0.01)
    aspect = torch.minimum(rows, columns) / torch.maximum(rows, columns)
    assert 0.25 < aspect.min() < 0.35
    assert (rows > columns).double().mean() == pytest.approx(0.5, abs=0.06)
    for covered in (gone.float().mean(dim=0), gone.float().mean(dim=0).T):
        assert covered[0].mean() > 0.002  # edges are reached
        assert covered[0].mean() == pytest.approx(covered[-1].mean().item(), abs=0.004)


def test_erasing_stays_out_of_the_recursion() -> None:
    inputs = batches(3)
    plain, both = (BatchAugmentation(classes=5, mixup=0.4, erasing=erasing) for erasing in (0.0, 1.0))
    for augmentation in (plain, both):
        torch.manual_seed(0)
        for number, (x, labels) in enumerate(inputs):
            augmentation(x, labels, generator(number))
    torch.testing.assert_close(plain.state_dict()["previous"], both.state_dict()["previous"])


def test_a_resumed_augmentation_goes_on_as_if_never_stopped() -> None:
    inputs = batches(4)
    straight, first, second = (BatchAugmentation(classes=5, mixup=0.4, erasing=0.5) for _ in range(3))
    chance = [generator(), generator()]
    expected = [straight(x, labels, chance[0]) for x, labels in inputs]
    for x, labels in inputs[:2]:
        first(x, labels, chance[1])
    resumed: Augmentation = second
    resumed.load_state_dict(first.state_dict())
    for (x, labels), (pixels, targets) in zip(inputs[2:], expected[2:], strict=True):
        again = resumed(x, labels, chance[1])
        assert torch.equal(again[0], pixels)
        assert torch.equal(again[1], targets)


@pytest.mark.parametrize(
    "wrong",
    [{"mixup": -0.1}, {"mixup": float("nan")}, {"erasing": 1.5}, {"mixup_rule": "cutmix"}],
)
def test_an_augmentation_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        BatchAugmentation(classes=3, **wrong)
