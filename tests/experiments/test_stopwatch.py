import itertools
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kinji.experiments.step_breakdown.stopwatch import EventClock, HostClock, Stopwatch


class Ticks:
    """A clock that moves by one second whenever it is read."""

    def __init__(self):
        self.marks = itertools.count()

    def mark(self):
        return float(next(self.marks))

    def seconds(self, start, end):
        return end - start


def ticking():
    watch = Stopwatch(Ticks())
    watch.reset(running=True)
    return watch


def test_inner_stages_interrupt_outer_ones():
    watch = ticking()
    with watch.stage("backward"):
        with watch.stage("normalization"):
            pass
        watch.wrap("K-FAC", lambda: None)()
        with watch.stage("normalization"), watch.stage("K-FAC"):
            pass
    assert watch.read() == {"backward": 4.0, "normalization": 3.0, "K-FAC": 2.0}


@given(names=st.lists(st.sampled_from("abc"), min_size=1, max_size=12), data=st.data())
def test_stages_add_up_to_the_time_from_first_start_to_last_stop(names, data):
    watch, opened = ticking(), 0
    watch.start("outermost")
    for name in names:
        if opened and data.draw(st.booleans()):
            watch.stop()
            opened -= 1
        watch.start(name)
        opened += 1
    for _ in range(opened + 1):
        watch.stop()
    assert sum(watch.read().values()) == watch.clock.mark() - 1


def test_a_stopwatch_that_does_not_run_counts_nothing():
    watch = ticking()
    watch.reset(running=False)
    with watch.stage("forward"):
        pass
    assert not watch.read() and watch.clock.mark() == 0


@pytest.mark.parametrize("training", [True, False])
def test_modules_are_watched_forward_and_backward_even_if_changed_in_place(training):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.BatchNorm2d(2))
    model.train(training)
    watch = ticking()
    watch.watch("normalization", (model[1], model[3]))
    with watch.stage("forward"):
        loss = model(torch.randn(2, 1, 5, 5)).square().sum()
    assert watch.read() == {"forward": 3.0, "normalization": 2.0}
    with watch.stage("backward"):
        loss.backward()
    assert watch.read() == {"forward": 3.0, "backward": 3.0, "normalization": 4.0}


def test_what_a_module_does_inside_another_stage_is_part_of_that():
    model = nn.BatchNorm1d(3)
    watch = ticking()
    watch.watch("normalization", [model])
    with watch.stage("forward"):
        output = model(torch.randn(4, 3))
    with watch.stage("sampled gradients"):
        torch.autograd.grad(output.sum(), model.weight)
    assert watch.read() == {"forward": 2.0, "normalization": 1.0, "sampled gradients": 3.0}


def test_the_processors_clock_counts_seconds():
    clock = HostClock()
    start, before = clock.mark(), time.perf_counter()
    time.sleep(0.02)
    assert 0.02 <= clock.seconds(start, clock.mark()) <= time.perf_counter() - before + 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_events_agree_with_a_synchronized_clock_and_do_not_wait():
    clock, a = EventClock(), torch.randn(4096, 4096, device="cuda")
    a @ a
    torch.cuda.synchronize()
    host, start = time.perf_counter(), clock.mark()
    for _ in range(50):
        a @ a
    end, launched = clock.mark(), time.perf_counter() - host
    torch.cuda.synchronize()
    finished = time.perf_counter() - host
    assert clock.seconds(start, end) == pytest.approx(finished, rel=0.05)
    assert launched < finished / 2
