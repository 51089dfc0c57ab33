"""N ranks must train as one does, to rounding in double precision, over gloo (over MPI: tests/kfac)."""

import pytest

from ..kfac.ranks import run_on_ranks
from .distributed import SIZES, VARIANTS, losses, on_gloo


@pytest.fixture(scope="module")
def on_ranks(once):
    """Results of each rank, by the number of ranks."""
    results = once("training on gloo", lambda folder: run_on_ranks(max(SIZES), folder, on_gloo, folder))
    return {size: [of_rank[size] for of_rank in results[:size]] for size in SIZES}


@pytest.fixture(scope="module")
def alone():
    return [losses(None, **variant) for variant in VARIANTS]


def test_ranks_have_the_losses_of_one(on_ranks, alone):
    for size in SIZES:
        for results in on_ranks[size]:
            for ours, reference, variant in zip(results["losses"], alone, VARIANTS, strict=True):
                assert len(ours) == len(reference) == 40
                assert ours == pytest.approx(reference, rel=1e-10, abs=0), (size, variant)


def test_every_rank_goes_on_from_its_own_checkpoint(on_ranks):
    assert all(results["resumed"] == [True, True] for results in on_ranks[2])
