"""Changes of whole batches (Osawa et al. 2020, sec. 6.1): running mixup, then random erasing.

Where the paper leaves a choice, the code released with the paper of 2019 decides: one share per image, shares of the
present image above one half (rule "released" only), height and width of an erased rectangle exchanged half the time.

Dimension letters: B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

MixupRule = Literal["published", "released"]

ERASED_AREA = (0.02, 0.25)
ERASED_ASPECT = (0.3, 1.0)


@dataclass(kw_only=True)
class BatchAugmentation:
    """Running mixup and random erasing: a `kinji.training.source.Augmentation`.

    Running mixup is ``x~(t) = l x(t) + (1 - l) x~(t - 1)``, targets alike, with ``l`` from Beta(alpha, alpha) for each
    image; the first batch stays as it is. Where two batches differ in size, images without a counterpart do too.
    Erasing comes last and does not enter the recursion.

    Attributes
    ----------
    classes : int
        Number of classes K.
    mixup : float
        ``alpha``; 0 for none.
    mixup_rule : {"published", "released"}
        "released" takes the larger of ``l`` and ``1 - l``.
    erasing : float
        Probability that a rectangle of an image is set to zero.

    Raises
    ------
    ValueError
        If a number is out of range or the rule is unknown.
    """

    classes: int
    mixup: float = 0.0
    mixup_rule: MixupRule = "published"
    erasing: float = 0.0
    _previous: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not (0 <= self.erasing <= 1 and 0 <= self.mixup < math.inf):
            raise ValueError(f"erasing must lie in 0..1 and mixup be >= 0, got {self}")
        if self.mixup_rule not in get_args(MixupRule):
            raise ValueError(f"mixup_rule must be one of {', '.join(get_args(MixupRule))}, got {self.mixup_rule!r}")

    def __call__(self, pixels_BCHW: Tensor, labels_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return pixels_BCHW and targets_BK; pixels given are not changed in place."""
        targets_BK = one_hot(labels_B, self.classes).to(pixels_BCHW.dtype)
        if self.mixup:
            pixels_BCHW, targets_BK = self._mixed(pixels_BCHW, targets_BK, generator)
        if self.erasing:
            pixels_BCHW = erased(pixels_BCHW, self.erasing, generator)
        return pixels_BCHW, targets_BK

    def state_dict(self) -> dict[str, Any]:
        """Return the previous virtual batch."""
        return {"previous": self._previous}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after another previous virtual batch."""
        self._previous = state["previous"]

    def _mixed(self, pixels_BCHW: Tensor, targets_BK: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix with the previous virtual batch, and remember this one."""
        share_B = self._shares(len(pixels_BCHW), generator).to(pixels_BCHW)
        if self._previous is not None:
            both = min(len(pixels_BCHW), len(self._previous[0]))
            pixels_BCHW, targets_BK = (
                torch.cat([torch.lerp(past[:both].to(now), now[:both], over(share_B[:both], now)), now[both:]])
                for past, now in zip(self._previous, (pixels_BCHW, targets_BK), strict=True)
            )
        self._previous = pixels_BCHW, targets_BK
        return self._previous

    def _shares(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the share of the present in each image."""
        seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
        share_B = torch.from_numpy(np.random.default_rng(int(seed)).beta(self.mixup, self.mixup, count))
        return torch.maximum(share_B, 1 - share_B) if self.mixup_rule == "released" else share_B


def erased(pixels_BCHW: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Return images of which some have a rectangle set to zero (Zhong et al. 2017, "Random erasing data augmentation").

    Parameters
    ----------
    pixels_BCHW : torch.Tensor
        Not changed.
    probability : float
        That a rectangle of an image is erased: `ERASED_AREA` of the image, in the ratio `ERASED_ASPECT` of its sides,
        either of which may be the height; no longer than the image, and wholly inside.
    generator : torch.Generator
        Five numbers an image come from it.
    """
    count, _, height, width = pixels_BCHW.shape
    draws_5B = torch.rand(5, count, generator=generator, device=generator.device).to(pixels_BCHW.device)
    chosen_B, area_B, aspect_B, down_B, right_B = draws_5B
    area_B = height * width * (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area_B)
    aspect_B = ERASED_ASPECT[0] + (ERASED_ASPECT[1] - ERASED_ASPECT[0]) * aspect_B
    aspect_B = torch.where(chosen_B < probability / 2, aspect_B, 1 / aspect_B)
    rows_BH = inside(height, (area_B * aspect_B).sqrt(), down_B)
    columns_BW = inside(width, (area_B / aspect_B).sqrt(), right_B)
    gone_BHW = rows_BH[:, :, None] & columns_BW[:, None, :] & (chosen_B < probability)[:, None, None]
    return pixels_BCHW.masked_fill(gone_BHW[:, None], 0.0)


def inside(length: int, extent_B: Tensor, position_B: Tensor) -> Tensor:
    """Return which of `length` pixels an interval of some extent covers, at a position of 0 (first) to 1 (last)."""
    extent_B = extent_B.round().clamp(max=length)
    start_B = (position_B * (length - extent_B + 1)).floor()
    pixel_L = torch.arange(length, device=extent_B.device)
    return (pixel_L >= start_B[:, None]) & (pixel_L < (start_B + extent_B)[:, None])


def over(share_B: Tensor, like: Tensor) -> Tensor:
    """Return a share per image that multiplies all of its numbers."""
    return share_B.reshape(-1, *[1] * (like.dim() - 1))
