"""Work shared out over threads."""

import threading

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from kinji.kfac.threads import share_out


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("threads", [1, 2])
def test_each_of_torchs_threads_has_one_of_blas_for_itself_and_results_are_in_order(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        seen = share_out(lambda k: (k, blas_threads()), range(5), torch.device("cpu"))
        assert blas_threads() == before and max(before) == 2
    assert [k for k, _ in seen] == list(range(5))
    assert all(set(inside) == {1} for _, inside in seen)


def test_torch_goes_on_with_all_its_threads():
    """What the calling thread was kept to while it took its share has been given back."""
    threads, x = torch.get_num_threads(), torch.arange(2.0**20, dtype=torch.float64)
    torch.set_num_threads(2)
    try:
        for _ in range(3):
            assert x.sqrt().square().sum() == pytest.approx(2**19 * (2**20 - 1))
            assert share_out(lambda k: k + torch.get_num_threads(), range(3), x.device) == [1, 2, 3]
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_work_is_done_by_several_threads_at_once_and_leaves_no_graph(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    meeting = threading.Barrier(2, timeout=60)
    shared = share_out(lambda _: (meeting.wait(), torch.is_grad_enabled()), range(2), torch.device("cpu"))
    assert [recorded for _, recorded in shared] == [False, False]


@pytest.mark.parametrize("threads", [1, 2])
def test_what_fails_in_a_thread_fails_here(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with pytest.raises(ZeroDivisionError):
        share_out(lambda k: 1 // k, [3, 2, 1, 0], torch.device("cpu"))
