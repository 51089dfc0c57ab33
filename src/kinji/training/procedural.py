"""Procedural images: one hundred classes, ten shapes by ten textures, under everything that a class does not say.

An image is a pile of layers, painted from the back: a background, clutter, the object, and what hides a part of it.
Each is a closed curve (Gielis 2003, "A generic geometric transformation that unifies a wide range of natural and
abstract shapes", eq. 4) filled with a texture of plane and polar waves in two colours. Only the object's shape and
texture follow the class; position, size, rotation, stretch, colours, phases, pitch, the other layers, the light and the
noise are random. Image n of a split is a function of the seed and n alone (`kinji.training.counted_random`), whatever
the number of images, chunks or workers, and shows the same scene at any size; devices agree up to rounding.

Dimension letters: N images, L layers, D draws, C channels, H height, W width. Coordinates run from -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from kinji.training.counted_random import logical_shift, random_bits, uniform
from kinji.training.stored import StoredImages

Split = Literal["train", "validation", "test"]

SHAPES = {  # symmetry m, exponents n1, n2, n3, share of the radius that is a hole
    "disc": (0, 1, 1, 1, 0),
    "ring": (0, 1, 1, 1, 0.6),
    "triangle": (3, 1000, 1980, 1980, 0),
    "square": (4, 1, 1, 1, 0),
    "frame": (4, 1, 1, 1, 0.6),
    "flower": (7, 2, 6, 6, 0),
    "dumbbell": (2, 2, 6, 6, 0),
    "astroid": (4, 0.5, 0.5, 0.5, 0),
    "star": (5, 0.6, 0.6, 0.6, 0),
    "trefoil": (3, 2, 6, 6, 0),
}
TEXTURES = {  # weights of three plane waves, angle between them in degrees, weight and arms of a polar wave, pitch
    "stripes": (1, 0, 0, 0, 0, 0, 1.5),
    "pinstripes": (1, 0, 0, 0, 0, 0, 2.8),
    "checks": (1, 1, 0, 90, 0, 0, 1.5),
    "gingham": (1, 1, 0, 90, 0, 0, 2.8),
    "dots": (1, 1, 1, 60, 0, 0, 1.5),
    "honeycomb": (1, 1, 1, 60, 0, 0, 2.8),
    "rings": (0, 0, 0, 0, 1, 0, 1.5),
    "ripples": (0, 0, 0, 0, 1, 0, 2.8),
    "spiral": (0, 0, 0, 0, 1, 3, 1.2),
    "rays": (0, 0, 0, 0, 1, 7, 0.3),
}
CLASSES = len(SHAPES) * len(TEXTURES)
LAYERS = {  # radius from, to, distance of the center from the middle, contrast between the two colours
    "background": (9.0, 9.0, 0.0, 0.15),
    "far clutter": (0.15, 0.35, 0.9, 0.4),
    "near clutter": (0.15, 0.35, 0.9, 0.4),
    "object": (0.5, 0.8, 0.25, 0.4),
    "occluder": (0.15, 0.3, 0.7, 0.1),
}
DRAWS = 20
TURN = math.pi / 3
"""Range of the angles of shapes, and of textures on them."""
NOISE = 0.06
CHUNK_PIXELS = {"cpu": 2**17, "cuda": 2**24}
"""Pixels painted at once: what fits the caches, or keeps a GPU busy."""


def procedural_images(
    split: Split, count: int, *, size: int = 32, seed: int = 0, device: str = "cpu", augment: bool = False
) -> StoredImages:
    """Paint the first images of a split.

    Parameters
    ----------
    split : {"train", "validation", "test"}
        The splits share no image.
    count : int
        Number of images N; number n is of class ``n % 100``.
    size : int
        Height and width in pixels, 8 to 224 and beyond.
    seed : int
        Fixes every image.
    device : str
        Where the images are painted and stay.
    augment : bool
        Whether images are flipped, and shifted by up to an eighth of their size, as they are asked for.

    Raises
    ------
    ValueError
        If there is no such split, or the count or the size is not positive.
    """
    if count < 1 or size < 1:
        raise ValueError(f"count and size must be positive, got {count} and {size}")
    numbers_N = torch.arange(count, device=device)
    chunk = max(1, CHUNK_PIXELS[numbers_N.device.type] // size**2)
    return StoredImages(
        pixels_NCHW=torch.cat([paint(split, part, size=size, seed=seed) for part in numbers_N.split(chunk)]),
        labels_N=numbers_N % CLASSES,
        classes=CLASSES,
        shift=size // 8 if augment else 0,
        flip=augment,
        seed=seed,
    )


def paint(split: Split, numbers_N: Tensor, *, size: int, seed: int = 0) -> Tensor:
    """Return the images of these numbers, pixels_NCHW (uint8), painted on the device of the numbers."""
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
    key = random_bits(seed, get_args(Split).index(split), numbers_N)
    draws_NLD = uniform(key[:, None, None], counters(len(LAYERS), key)[:, None], counters(DRAWS, key))
    middles = (counters(size, key) + 0.5) * (2 / size) - 1
    y_HW, x_HW = torch.meshgrid(middles, middles, indexing="ij")
    canvas_NCHW = torch.zeros(len(key), 3, size, size, device=key.device)
    for number, layer in enumerate(LAYERS):
        choices = len(TEXTURES) if layer == "background" else CLASSES  # a disc covers it all
        kind_N = numbers_N % CLASSES if layer == "object" else (uniform(key, number, DRAWS) * choices).long()
        coverage_NHW, colours_NCHW = painted_layer(LAYERS[layer], kind_N, draws_NLD[:, number], x_HW, y_HW)
        canvas_NCHW += coverage_NHW[:, None] * (colours_NCHW - canvas_NCHW)
    lit_NCHW = canvas_NCHW * light(uniform(key[:, None], len(LAYERS), counters(3, key)), x_HW, y_HW)[:, None]
    return (255 * (lit_NCHW + NOISE * noise(key, size)).clamp(0, 1)).round().to(torch.uint8)


def counters(count: int, like: Tensor) -> Tensor:
    """Return 0 to count - 1 on the device of another tensor."""
    return torch.arange(count, device=like.device)


def painted_layer(
    layer: tuple[float, ...], kind_N: Tensor, draws_ND: Tensor, x_HW: Tensor, y_HW: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how much of each pixel a layer covers (0 to 1, NHW), and its colours (NCHW)."""
    smallest, largest, spread, contrast = layer
    of = [draw_N[:, None, None] for draw_N in draws_ND.T]
    radius = smallest + (largest - smallest) * of[0]
    angle, stretch = TURN * (of[3] - 0.5), torch.exp(0.3 * (of[4] - 0.5))
    x, y = rotated(x_HW - spread * (2 * of[1] - 1), y_HW - spread * (2 * of[2] - 1), angle)
    x, y = x * stretch, y / stretch
    pixel = 2 / len(x_HW)
    coverage_NHW = covered(kind_N // len(TEXTURES), x / radius, y / radius, radius / pixel)
    grain = radius.clamp_max(1.0) * torch.exp(0.3 * (of[5] - 0.5))
    u, v = rotated(x / grain, y / grain, TURN * (of[6] - 0.5))
    shade_NHW = wave(kind_N % len(TEXTURES), u, v, [2 * math.pi * phase for phase in of[7:10]])
    dark_NC111, gap = draws_ND[:, 10:13, None, None], contrast * (1 + draws_ND[:, 13:16, None, None])
    light_NC11 = torch.where(dark_NC111 < 0.5, dark_NC111 + gap, dark_NC111 - gap)
    return coverage_NHW, dark_NC111 + shade_NHW[:, None] * (light_NC11 - dark_NC111)


def rotated(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates along axes turned by an angle."""
    cosine, sine = angle.cos(), angle.sin()
    return cosine * x + sine * y, cosine * y - sine * x


def covered(shape_N: Tensor, x: Tensor, y: Tensor, pixels: Tensor) -> Tensor:
    """Return the share of each pixel inside a curve of area pi, given pixels to a unit of length."""
    m, n1, n2, n3, hole = table(SHAPES, x)[shape_N].T[:, :, None, None]
    edge = curve(torch.atan2(y, x), m, n1, n2, n3) / extents(x.device)[shape_N][:, None, None]
    distance = torch.hypot(x, y)
    outside, inside = edge - distance, distance - hole * edge
    return (torch.minimum(outside, inside.where(hole > 0, outside)) * pixels + 0.5).clamp(0, 1)


def curve(angle: Tensor, m: Tensor, n1: Tensor, n2: Tensor, n3: Tensor) -> Tensor:
    """Return the radius (|cos(m a / 4)|^n2 + |sin(m a / 4)|^n3)^(-1/n1) at each angle; powers alone would overflow."""
    quarter = m * angle / 4
    return torch.exp(-torch.logaddexp(n2 * quarter.cos().abs().log(), n3 * quarter.sin().abs().log()) / n1)


@cache
def extents(device: torch.device) -> Tensor:
    """Return for each shape the radius of the disc of the same area, so that no shape is larger than another."""
    angle_A = torch.arange(4096, device=device) * (2 * math.pi / 4096)
    m, n1, n2, n3, _ = table(SHAPES, angle_A).T[:, :, None]
    return curve(angle_A, m, n1, n2, n3).square().mean(dim=1).sqrt()


def wave(texture_N: Tensor, x: Tensor, y: Tensor, phases: list[Tensor]) -> Tensor:
    """Return a texture's mixture of its two colours, 0 to 1."""
    first, second, third, between, polar, arms, pitch = table(TEXTURES, x)[texture_N].T[:, :, None, None]
    turn, per_length = torch.deg2rad(between), 2 * math.pi * pitch
    height = polar * torch.cos(per_length * torch.hypot(x, y) + arms * torch.atan2(y, x) + phases[0])
    for number, weight in enumerate((first, second, third)):
        along, _ = rotated(x, y, number * turn)
        height = height + weight * torch.cos(per_length * along + phases[number])
    return torch.sigmoid(4 * height)


def table(rows: Mapping[str, tuple[float, ...]], like: Tensor) -> Tensor:
    """Return the numbers of a table, one row a name."""
    return torch.tensor(list(rows.values()), dtype=torch.float32, device=like.device)


def light(draws_N3: Tensor, x_HW: Tensor, y_HW: Tensor) -> Tensor:
    """Return the brightness of each pixel, a ramp of random direction, steepness and level."""
    direction, steepness, level = draws_N3.T[:, :, None, None]
    along, _ = rotated(x_HW, y_HW, 2 * math.pi * direction)
    return 0.7 + 0.5 * level + 0.4 * steepness * along


def noise(key_N: Tensor, size: int) -> Tensor:
    """Return nearly normal noise of unit variance, NCHW: four 16-bit uniform numbers a value, summed."""
    bits = random_bits(key_N[:, None], len(LAYERS) + 1, counters(3 * size**2, key_N))
    total = torch.zeros(bits.shape, device=bits.device)
    for shift in (0, 16, 32, 48):
        total += logical_shift(bits, shift) & 0xFFFF
    return ((total / 2**16 - 2) * math.sqrt(3)).reshape(-1, 3, size, size)


def write_folders(folder: Path, images: dict[Split, int], *, size: int = 224, seed: int = 0, quality: int = 90) -> None:
    """Write splits as JPEG files in the layout of ImageNet, ``train/<class>/*.jpeg`` and so on; ``test`` is ``val``.

    Parameters
    ----------
    folder : pathlib.Path
        Made if it is not there; files of the same name are overwritten.
    images : dict
        How many of each split.
    size, seed : int
        As for `procedural_images`.
    quality : int
        Of the JPEG files, 1 to 100.
    """
    names = [f"{shape}-{texture}" for shape in SHAPES for texture in TEXTURES]
    with ThreadPoolExecutor() as encoders:
        for split, count in images.items():
            folders = [folder / ("val" if split == "test" else split) / name for name in names]
            for class_folder in folders[:count]:
                class_folder.mkdir(parents=True, exist_ok=True)
            for part in torch.arange(count).split(max(1, CHUNK_PIXELS["cpu"] // size**2)):
                files = [folders[n % CLASSES] / f"{n:08d}.jpeg" for n in part.tolist()]
                painted = map(Image.fromarray, paint(split, part, size=size, seed=seed).permute(0, 2, 3, 1).numpy())
                list(encoders.map(lambda image, file: image.save(file, quality=quality), painted, files))
