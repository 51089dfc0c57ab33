from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d
from torchvision.transforms.functional import pil_to_tensor

from kinji.training import procedural_images
from kinji.training.counted_random import random_bits, uniform
from kinji.training.procedural import (
    CLASSES,
    DRAWS,
    LAYERS,
    SHAPES,
    TEXTURES,
    Split,
    covered,
    light,
    noise,
    paint,
    painted_layer,
    write_folders,
)


def test_an_image_does_not_depend_on_count_chunks_or_order() -> None:
    many = procedural_images("train", 130, size=8, seed=3)
    few = procedural_images("train", 7, size=8, seed=3)
    assert torch.equal(many.pixels_NCHW[:7], few.pixels_NCHW)
    assert torch.equal(paint("train", torch.tensor([129, 4]), size=8, seed=3), many.pixels_NCHW[[129, 4]])


def test_splits_and_seeds_share_no_image() -> None:
    splits: tuple[Split, ...] = get_args(Split)
    sets = [procedural_images(split, 50, size=8, seed=seed) for split in splits for seed in (0, 1)]
    pixels = torch.cat([images.pixels_NCHW for images in sets]).flatten(1).float()
    distance = torch.cdist(pixels, pixels) + 1e9 * torch.eye(len(pixels))
    assert distance.min() > 100


def test_classes_are_balanced_and_named_by_shape_and_texture() -> None:
    images = procedural_images("test", 300, size=8)
    assert CLASSES == images.classes == len(SHAPES) * len(TEXTURES) == 100
    assert images.labels_N.bincount().tolist() == [3] * 100


def test_the_object_of_an_image_is_of_its_class() -> None:
    """Of all classes, painted in the image's own place, colours and light, its own differs least from the image."""
    numbers, layer, kinds = torch.arange(300, 320), list(LAYERS).index("object"), torch.arange(CLASSES)
    middles = (torch.arange(32) + 0.5) / 16 - 1
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    nearest = []
    for key, pixels_CHW in zip(random_bits(0, 0, numbers), paint("train", numbers, size=32), strict=True):
        draws_1D = uniform(key, layer, torch.arange(DRAWS))[None]
        coverage, colours = painted_layer(LAYERS["object"], kinds, draws_1D.expand(CLASSES, -1), x, y)
        lit = colours * light(uniform(key, len(LAYERS), torch.arange(3))[None], x, y)
        error = (lit.clamp(0, 1) - pixels_CHW / 255).square().mean(dim=1)
        nearest.append(int(((coverage * error).sum(dim=(1, 2)) / coverage.sum(dim=(1, 2))).argmin()))
    assert sum(found == number % CLASSES for found, number in zip(nearest, numbers.tolist(), strict=True)) >= 18


def test_a_scene_is_the_same_at_any_size() -> None:
    numbers = torch.arange(64)
    small, large = (paint("train", numbers, size=size).float() for size in (16, 64))
    shrunk = avg_pool2d(large, 4)
    other = small.roll(1, dims=0)
    assert (small - shrunk).abs().mean() < 0.5 * (other - shrunk).abs().mean()


def test_every_shape_covers_the_area_of_the_unit_disc_but_its_hole() -> None:
    middles = (torch.arange(400) + 0.5) / 100 - 2
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    shapes = torch.arange(len(SHAPES))
    areas = covered(shapes, x[None], y[None], torch.tensor(100.0)).sum(dim=(1, 2)) / 100**2
    for area, (*_, hole) in zip(areas, SHAPES.values(), strict=True):
        assert area == pytest.approx(torch.pi * (1 - hole**2), rel=0.02)


def test_noise_is_nearly_normal() -> None:
    sample = noise(random_bits(torch.arange(20)), 32)
    assert sample.mean() == pytest.approx(0, abs=0.01)
    assert sample.var() == pytest.approx(1, abs=0.02)
    assert (sample**4).mean() == pytest.approx(2.7, abs=0.1)  # 3 for the normal distribution, 1.8 for a uniform one


def test_colours_do_not_tell_the_class() -> None:
    images = procedural_images("train", 2000, size=8)
    means_NC = images.pixels_NCHW.float().mean(dim=(2, 3))
    by_class = torch.stack([means_NC[images.labels_N == label].mean(dim=0) for label in range(100)])
    explained = by_class.var(dim=0) / means_NC.var(dim=0)  # 1 / 20 by chance
    assert (explained < 0.12).all()


def test_jpeg_folders_hold_the_same_images(tmp_path: Path) -> None:
    folder = tmp_path
    write_folders(folder, {"train": 12, "test": 3}, size=32, seed=1, quality=95)
    files = sorted(folder.rglob("*.jpeg"))
    assert [sum(file.parts[-3] == part for file in files) for part in ("train", "val")] == [12, 3]
    images = procedural_images("train", 12, size=32, seed=1).pixels_NCHW
    for file in files[:12]:
        shape, texture = file.parent.name.split("-")
        number = int(file.stem)
        assert number % CLASSES == list(SHAPES).index(shape) * 10 + list(TEXTURES).index(texture)
        difference = pil_to_tensor(Image.open(file)).float() - images[number].float()
        assert avg_pool2d(difference, 4).abs().mean() < 8  # JPEG keeps less of colours than of brightness


@pytest.mark.parametrize("wrong", [{"split": "val"}, {"count": 0}, {"size": 0}])
def test_a_set_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        procedural_images(**({"split": "train", "count": 4, "size": 8} | wrong))
