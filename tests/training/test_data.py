import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from kinji.training import FOLDS, Fold, ImageSource, digits_fold

IMAGES = len(load_digits().target)


@pytest.fixture(scope="module")
def folds() -> list[Fold]:
    return [digits_fold(fold, training_images=1024) for fold in range(FOLDS)]


def positions(fold: Fold) -> list[np.ndarray]:
    return [part.positions_N for part in (fold.train, fold.validation, fold.test)]


def test_the_test_parts_partition_the_images(folds: list[Fold]) -> None:
    tested = np.concatenate([fold.test.positions_N for fold in folds])
    assert sorted(tested) == list(range(IMAGES))


def test_the_parts_of_a_fold_partition_the_images(folds: list[Fold]) -> None:
    for fold in folds:
        assert sorted(np.concatenate(positions(fold))) == list(range(IMAGES))
        assert len(fold.train) == 1024


def test_every_part_has_the_class_shares_of_the_set(folds: list[Fold]) -> None:
    shares = np.bincount(load_digits().target) / IMAGES
    for fold in folds:
        for part in (fold.train, fold.validation, fold.test):
            counts = torch.bincount(part.labels_N).numpy()
            np.testing.assert_allclose(counts, shares * len(part), atol=2.0)  # two roundings: the fold's, the split's


def test_pixels_and_labels_are_those_at_the_positions(folds: list[Fold]) -> None:
    digits, part = load_digits(), folds[2].validation
    assert (part.labels_N.numpy() == digits.target[part.positions_N]).all()
    pixels, expected = part.pixels_NCHW[:, 0].numpy(), digits.images[part.positions_N]
    scale = np.ptp(pixels) / np.ptp(expected)
    np.testing.assert_allclose(pixels - pixels.min(), scale * expected, atol=1e-5)


def test_only_the_training_part_sets_the_normalization(folds: list[Fold]) -> None:
    for fold in folds:
        assert fold.train.pixels_NCHW.mean().item() == pytest.approx(0, abs=1e-6)
        assert fold.train.pixels_NCHW.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert abs(folds[0].test.pixels_NCHW.mean().item()) > 1e-4


def test_a_seed_fixes_the_parts() -> None:
    same, other = digits_fold(1, training_images=900, seed=3), digits_fold(1, training_images=900, seed=4)
    for first, second in zip(positions(digits_fold(1, training_images=900, seed=3)), positions(same), strict=True):
        assert (first == second).all()
    assert set(same.test.positions_N) != set(other.test.positions_N)


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_that_is_not_there_is_refused(fold: int) -> None:
    with pytest.raises(ValueError, match=r"fold must lie in 0\.\.4"):
        digits_fold(fold, training_images=1024)


@pytest.mark.parametrize("training_images", [0, 9, 1430, 2000])
def test_a_split_without_images_of_every_class_is_refused(training_images: int) -> None:
    with pytest.raises(ValueError, match="training_images must lie in"):
        digits_fold(0, training_images=training_images)


def test_images_are_asked_for_by_number() -> None:
    images = digits_fold(0, training_images=256).train
    source: ImageSource = images
    numbers = [torch.tensor([3, 1, 2]), torch.tensor([255])]
    (pixels_BCHW, labels_B), (last_1CHW, _) = source.batches(numbers, epoch=0)
    for number, pixels_CHW, label in zip(numbers[0], pixels_BCHW, labels_B, strict=True):
        assert torch.equal(pixels_CHW, images.pixels_NCHW[number])
        assert label == images.labels_N[number]
    assert torch.equal(last_1CHW[0], images.pixels_NCHW[255])
