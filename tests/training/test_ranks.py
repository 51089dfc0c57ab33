"""N ranks must train as one does, to rounding in double precision, over torch.distributed and over MPI."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ..kfac.ranks import run_on_ranks
from .distributed import SIZES, VARIANTS, losses, on_gloo

MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
MPI = pytest.mark.skipif(not (MPIEXEC and find_spec("mpi4py")), reason="no mpi4py or no mpiexec here")

SLEEP = {"MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1", "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "16"}
"""Ranks that wait under MPICH leave the cores to the others."""


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory, request):
    """Results of each rank, by the number of ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    if request.param == "gloo":
        results = run_on_ranks(max(SIZES), folder, on_gloo, folder)
    else:
        command = [str(MPIEXEC), "-n", "4", sys.executable, "-m", "tests.training.distributed", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **SLEEP}
        run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment)
        assert run.returncode == 0, run.stderr
        results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(max(SIZES))]
    return {size: [of_rank[size] for of_rank in results[:size]] for size in SIZES}


@pytest.fixture(scope="module")
def alone():
    return [losses(None, **variant) for variant in VARIANTS]


@pytest.mark.parametrize("on_ranks", ["gloo", pytest.param("mpi", marks=MPI)], indirect=True)
def test_ranks_have_the_losses_of_one(on_ranks, alone):
    for size in SIZES:
        for results in on_ranks[size]:
            for ours, reference, variant in zip(results["losses"], alone, VARIANTS, strict=False):
                assert len(ours) == len(reference) == 40
                assert ours == pytest.approx(reference, rel=1e-10, abs=0), (size, variant)


@pytest.mark.parametrize("on_ranks", ["gloo"], indirect=True)
def test_every_rank_goes_on_from_its_own_checkpoint(on_ranks):
    assert all(results["resumed"] == [True, True] for results in on_ranks[2])
