"""Intervals on constant, drifting and white-noise streams are those of the paper's rule."""

import pytest
import torch

from kinji.kfac import triangle
from kinji.kfac.staleness import Clock, next_intervals

from .triangles import lower_alone, whole


def next_interval(clock, fresh, before, alpha):
    return next_intervals([clock], [fresh], [before], [False], alpha)[0]


def intervals(stream, steps, alpha=0.1):
    """The intervals chosen on a stream of statistics, by step."""
    clock, before, chosen = Clock(), [], []
    for step in range(steps):
        if clock.due == step:
            fresh = stream(step)
            chosen.append(next_interval(clock, fresh, before, alpha))
            clock.advance(step, chosen[-1])
            before = [fresh, *before[:1]]
    return chosen


def test_constant_stream_grows_like_fibonacci():
    assert intervals(lambda _: torch.eye(3), 200) == [1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89]


def test_white_noise_is_refreshed_in_every_step():
    generator = torch.Generator().manual_seed(0)
    assert intervals(lambda _: torch.randn(5, 5, generator=generator), 50) == [1] * 50


def test_drift_keeps_intervals_below_what_alpha_allows():
    """A statistic that grows by one percent a step moves by a tenth in ten steps."""
    chosen = intervals(lambda step: torch.tensor([1.01**step]), 2000)
    assert 3 <= max(chosen) <= 10
    assert len(set(chosen[20:])) > 1 or chosen[-1] in range(4, 11)


def test_a_jump_halves_the_interval():
    clock = Clock(due=0, interval=9, previous=5)
    one, other = torch.ones(2), torch.tensor([5.0, -3.0])
    assert next_interval(clock, one, [other, one], 0.1) == 4
    assert next_interval(clock, one, [one, other], 0.1) == 9
    assert next_interval(clock, one, [one, one], 0.1) == 14
    assert next_interval(Clock(interval=1), one, [other, one], 0.1) == 1


@pytest.mark.parametrize("groups", [(), (3,)])
@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_of_symmetric_matrices_the_norm_of_the_whole_is_taken_from_the_triangle(n, groups, monkeypatch):
    monkeypatch.setattr(triangle, "PANEL", 4)
    matrix, older = (whole(torch.randn(*groups, n, n, dtype=torch.float64)) for _ in range(2))
    ratio = ((matrix - older).norm() / older.norm()).item()
    for alpha, expected in ((ratio * (1 + 1e-9), 3), (ratio * (1 - 1e-9), 1)):
        kept = [[lower_alone(older)]], [True]
        assert next_intervals([Clock(interval=3)], [lower_alone(matrix)], *kept, alpha) == [expected]


def test_similarity_is_relative_to_the_older_statistic():
    clock, older = Clock(interval=4, previous=2), torch.tensor([1.0])
    assert next_interval(clock, torch.tensor([1.09]), [older, older], 0.1) == 6
    assert next_interval(clock, torch.tensor([1.105]), [older, older], 0.1) == 2
    assert next_interval(clock, torch.tensor([1e-6]), [torch.zeros(1), older], 0.1) == 2
