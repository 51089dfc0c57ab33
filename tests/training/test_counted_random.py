import numpy as np
import pytest
import torch
from scipy import stats

from kinji.training.counted_random import mixed, random_bits, uniform

MASK = 2**64 - 1


def finalizer(bits: int) -> int:
    """SplitMix64's finalizer in unsigned integers of any size."""
    bits = ((bits ^ bits >> 30) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ bits >> 27) * 0x94D049BB133111EB) & MASK
    return bits ^ bits >> 31


@pytest.mark.parametrize("bits", [0, 1, 0x9E3779B97F4A7C15, MASK, 2**63])
def test_signed_arithmetic_mixes_as_unsigned(bits: int) -> None:
    signed = torch.tensor(bits - 2**64 if bits >= 2**63 else bits)
    assert mixed(signed).item() % 2**64 == finalizer(bits)


def test_numbers_of_any_counter_are_uniform_and_uncorrelated() -> None:
    number = torch.arange(20_000)
    streams = [uniform(0, number), uniform(1, number), uniform(0, 0, number), uniform(0, number, 1), uniform(number, 0)]
    for stream in streams:
        assert stats.kstest(stream.numpy(), "uniform").pvalue > 1e-3
    correlation = np.corrcoef(torch.stack(streams).numpy()) - np.eye(len(streams))
    assert abs(correlation).max() < 0.03
    assert abs(np.corrcoef(streams[0][1:], streams[0][:-1])[0, 1]) < 0.03


def test_counters_broadcast_and_do_not_commute() -> None:
    grid = random_bits(7, torch.arange(3)[:, None], torch.arange(4))
    assert grid.shape == (3, 4)
    assert len(grid.unique()) == 12
    assert grid[1, 2] == random_bits(7, torch.tensor(1), 2) != random_bits(7, torch.tensor(2), 1)
