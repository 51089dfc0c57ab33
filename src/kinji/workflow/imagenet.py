"""Is this folder the ImageNet of 2012 (ILSVRC2012), whole and laid out as torchvision reads it?

``train/<class>/<class>_<number>.JPEG`` and ``val/<class>/ILSVRC2012_val_<8 digits>.JPEG``, 1,000 classes. The
numbers of images are the published ones (Russakovsky et al. 2015); names and sizes are hashed, not the images.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from kinji.errors import KinjiError

CLASSES = 1000
IMAGES = {"train": 1_281_167, "val": 50_000}
NAMES = {"train": r"(n\d{8})/\1_\d+\.JPEG", "val": r"n\d{8}/ILSVRC2012_val_\d{8}\.JPEG"}
DISK_GIGABYTES = 150


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One part of the data set: how many classes and images, and the SHA-256 of its sorted ``path size`` lines."""

    part: str
    classes: int
    images: int
    sha256: str


def verify_imagenet(folder: Path) -> list[Listing]:
    """Return the listing of both parts; raise `KinjiError` that names what is missing, too much or misnamed."""
    listings = [list_part(folder, part) for part in IMAGES]
    wrong = [
        f"{one.part}/ has {one.images:,} images in {one.classes:,} classes, not {IMAGES[one.part]:,} in {CLASSES:,}"
        for one in listings
        if (one.images, one.classes) != (IMAGES[one.part], CLASSES)
    ]
    if wrong:
        raise KinjiError(f"{folder} is not the whole of ILSVRC2012: {'; '.join(wrong)}. Unpack the archives again.")
    return listings


def list_part(folder: Path, part: str) -> Listing:
    """Return the listing of one part; raise `KinjiError` at a file that does not belong there."""
    lines = []
    for kind in _entries(folder / part):
        for image in _entries(Path(kind.path)):
            name = f"{kind.name}/{image.name}"
            if not re.fullmatch(NAMES[part], name):
                raise KinjiError(f"{folder}/{part}/{name} is no image of ILSVRC2012 by its name. Move it away.")
            lines.append((name, image.stat().st_size))
    text = "".join(f"{name} {size}\n" for name, size in sorted(lines))
    classes = len({name.split("/")[0] for name, _ in lines})
    return Listing(part=part, classes=classes, images=len(lines), sha256=hashlib.sha256(text.encode()).hexdigest())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise KinjiError(
            f"cannot list {folder}: {error.strerror}. It must hold train/ and val/, one folder a class."
        ) from error
