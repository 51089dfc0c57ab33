"""Random numbers as a function of what they are for: seed, epoch, number of the image, number of the draw.

The counters are mixed by the finalizer of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators", fig. 13), one after the other. Integers only, so every device, batch and worker draws the same bits.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 64-bit constants as torch's signed integers
FIRST = 0xBF58476D1CE4E5B9 - 2**64
SECOND = 0x94D049BB133111EB - 2**64


def uniform(*counters: int | Tensor) -> Tensor:
    """Return uniform numbers in [0, 1), multiples of 2^-24, one for each combination of the broadcast counters."""
    return logical_shift(random_bits(*counters), 40).to(torch.float32) * 2.0**-24


def random_bits(*counters: int | Tensor) -> Tensor:
    """Return 64 random bits (int64) for each combination of the broadcast counters, of which one is a tensor."""
    device = next(counter.device for counter in counters if isinstance(counter, Tensor))
    start = torch.zeros((), dtype=torch.int64, device=device)
    return reduce(lambda bits, counter: mixed(bits + GOLDEN + counter), counters, start)


def mixed(bits: Tensor) -> Tensor:
    """Return the bits after SplitMix64's finalizer, a bijection."""
    bits = (bits ^ logical_shift(bits, 30)) * FIRST
    bits = (bits ^ logical_shift(bits, 27)) * SECOND
    return bits ^ logical_shift(bits, 31)


def logical_shift(bits: Tensor, places: int) -> Tensor:
    """Shift right without copies of the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
