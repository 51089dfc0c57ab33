import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from kinji.training import FolderImages, ImageSource
from kinji.training.counted_random import uniform
from kinji.training.imagenet import AREA, ASPECT, ATTEMPTS, DEVIATION_C, MEAN_C, central_crop, random_crop
from kinji.training.procedural import write_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    write_folders(path, {"train": 40, "test": 20}, size=48)
    return path


def ask(images: ImageSource, *numbers: list[int], epoch: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(images.batches(map(torch.tensor, numbers), epoch=epoch))


def test_classes_and_numbers_are_those_of_sorted_folders(folder: Path) -> None:
    images = FolderImages(folder, "train", size=32)
    names = sorted(file.parent.name for file in (folder / "train").rglob("*.jpeg"))
    assert (len(images), images.classes) == (40, 40)
    (_, labels), (_, last) = ask(images, list(range(39)), [39])
    assert [sorted(set(names))[label] for label in [*labels, *last]] == names


@pytest.mark.parametrize("workers", [0, 2])
def test_a_view_depends_on_seed_epoch_and_number_alone(folder: Path, workers: int) -> None:
    images = FolderImages(folder, "train", size=32, augment=True, seed=7, workers=workers)
    ((together, _),) = ask(FolderImages(folder, "train", size=32, augment=True, seed=7), [5, 9, 1, 0], epoch=3)
    apart = torch.cat([pixels for pixels, _ in ask(images, [0], [9, 1], [5], epoch=3)])
    assert torch.equal(apart, together[[3, 1, 2, 0]])
    assert not torch.equal(ask(images, [5], epoch=4)[0][0][0], together[0])
    assert not torch.equal(
        ask(FolderImages(folder, "train", size=32, augment=True, seed=8), [5], epoch=3)[0][0][0], together[0]
    )


def test_validation_takes_the_middle(folder: Path) -> None:
    images = FolderImages(folder, "val", size=42)
    ((pixels, _),) = ask(images, [0])
    file = min((folder / "val").rglob("*.jpeg"))
    middle = torch.from_numpy(np.array(Image.open(file)))[3:45, 3:45].permute(2, 0, 1) / 255  # 42 of 48, as 224 of 256
    torch.testing.assert_close(pixels[0] * DEVIATION_C + MEAN_C, middle, rtol=0, atol=1e-6)


def test_random_crops_are_distributed_as_torchvision_s() -> None:
    draws = uniform(torch.arange(2000)[:, None], torch.arange(4 * ATTEMPTS)).tolist()
    left, top, right, bottom = np.array([random_crop(500, 375, row) for row in draws]).T
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = [RandomResizedCrop.get_params(image, list(AREA), list(ASPECT)) for _ in range(2000)]
    down, across, height, width = np.array(theirs).T
    assert left.min() == top.min() == 0
    assert (right.max(), bottom.max()) == (500, 375)
    for ours, reference in ((left, across), (top, down), (right - left, width), (bottom - top, height)):
        assert stats.ks_2samp(ours, reference).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(1000, 10), (10, 1000), (7, 7)])
def test_an_image_of_any_shape_has_a_crop(shape: tuple[int, int]) -> None:
    for box in (random_crop(*shape, [0.99] * 4 * ATTEMPTS), central_crop(*shape)):
        left, top, right, bottom = box
        assert 0 <= left < right <= shape[0] and 0 <= top < bottom <= shape[1]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:600])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(("workers", "damage"), [(0, truncate), (0, Path.unlink), (0, empty), (1, truncate)])
def test_a_damaged_image_is_named_counted_and_replaced_by_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], workers: int
) -> None:
    write_folders(tmp_path, {"train": 6}, size=32)
    files = sorted((tmp_path / "train").rglob("*.jpeg"))
    images = FolderImages(tmp_path, "train", size=32, workers=workers)
    damage(files[5])
    with caplog.at_level(logging.WARNING):
        ((pixels, labels),) = ask(images, [4, 5, 0])
        ask(images, [5])
    assert labels.tolist() == [4, 0, 0]
    assert torch.equal(pixels[1], pixels[2])
    assert images.unreadable == {5}
    assert [record.getMessage() for record in caplog.records] == [f"{files[5]} cannot be read; {files[0]} stands in"]


def test_too_many_damaged_images_are_an_error(tmp_path: Path) -> None:
    write_folders(tmp_path, {"train": 6}, size=32)
    files = sorted((tmp_path / "train").rglob("*.jpeg"))
    truncate(files[1])
    truncate(files[2])
    images = FolderImages(tmp_path, "train", size=32)
    with pytest.raises(OSError, match=rf"2 of the 6 images of .* more than the 1 that are survived; one is {files[1]}"):
        ask(images, [0, 1, 2])
    for file in files:
        truncate(file)
    with pytest.raises(OSError, match=r"no image of .*train can be read"):
        ask(images, [0])


def test_grey_and_transparent_images_have_three_channels(tmp_path: Path) -> None:
    for number, mode in enumerate(("L", "RGBA", "CMYK")):
        (tmp_path / "val" / mode).mkdir(parents=True)
        image = Image.new(mode, (40, 30), color=number)
        image.save(tmp_path / "val" / mode / f"image.{'png' if mode == 'RGBA' else 'jpeg'}")
    ((pixels, labels),) = ask(FolderImages(tmp_path, "val", size=16), [0, 1, 2])
    assert pixels.shape == (3, 3, 16, 16)
    assert labels.tolist() == [0, 1, 2]


def test_a_missing_folder_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    for missing in (None, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no images: .*`data_path` .*`imagenet` of slurm/config.yaml"):
            FolderImages(missing, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError):
        FolderImages(tmp_path, "train")
