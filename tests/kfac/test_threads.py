"""Work shared out over threads."""

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


@pytest.mark.parametrize("threads", [1, 2])
def test_what_fails_in_a_thread_fails_here(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with pytest.raises(ZeroDivisionError):
        share_out(lambda k: 1 // k, [3, 2, 1, 0], torch.device("cpu"))
