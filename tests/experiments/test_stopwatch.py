import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kinji.experiments.stopwatch import Stopwatch


class Ticking(Stopwatch):
    """Reads a clock that moves by one second whenever it is read."""

    def __init__(self):
        super().__init__("cpu")
        self.running = True
        self.clock = itertools.count()

    def now(self):
        return float(next(self.clock))


def test_inner_parts_interrupt_outer_ones():
    watch = Ticking()
    with watch.part("backward"):
        with watch.part("normalization"):
            pass
        watch.wrap("K-FAC", lambda: None)()
        with watch.part("normalization"), watch.part("K-FAC"):
            pass
    assert watch.seconds == {"backward": 4.0, "normalization": 3.0, "K-FAC": 2.0}


@given(names=st.lists(st.sampled_from("abc"), min_size=1, max_size=12), data=st.data())
def test_parts_add_up_to_the_time_from_first_start_to_last_stop(names, data):
    watch, opened = Ticking(), 0
    watch.start("outermost")
    for name in names:
        if opened and data.draw(st.booleans()):
            watch.stop()
            opened -= 1
        watch.start(name)
        opened += 1
    for _ in range(opened + 1):
        watch.stop()
    assert sum(watch.seconds.values()) == watch.now() - 1


def test_a_stopwatch_that_does_not_run_counts_nothing():
    watch = Ticking()
    watch.reset(running=False)
    with watch.part("forward"):
        pass
    assert not watch.seconds and watch.now() == 0


@pytest.mark.parametrize("training", [True, False])
def test_modules_are_watched_forward_and_backward_even_if_changed_in_place(training):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.BatchNorm2d(2))
    model.train(training)
    watch = Ticking()
    watch.watch("normalization", (model[1], model[3]))
    with watch.part("forward"):
        loss = model(torch.randn(2, 1, 5, 5)).square().sum()
    assert watch.seconds == {"forward": 3.0, "normalization": 2.0}
    with watch.part("backward"):
        loss.backward()
    assert watch.seconds == {"forward": 3.0, "backward": 3.0, "normalization": 4.0}
