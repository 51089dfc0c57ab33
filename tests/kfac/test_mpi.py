"""The MPI communicator under mpiexec: the collectives and whole training runs of two ranks."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mpi4py", reason="the mpi extra is not installed")
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")

PROGRAM = """
import torch
from mpi4py import MPI
from kinji.kfac import MPICommunicator, SerialCommunicator
from tests.kfac.test_communicator import VARIANTS, train

torch.set_num_threads(1)
communicator = MPICommunicator(MPI.COMM_WORLD)
assert communicator.size == 2
for variant in VARIANTS:
    pairs = zip(train(communicator, *variant), train(SerialCommunicator(), *variant), strict=True)
    assert all((one - other).norm() <= 1e-12 * other.norm() for one, other in pairs), variant
assert communicator.carried_bytes["statistics"] > 0
print("equal", flush=True)
"""


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec on this machine")
def test_two_mpi_ranks_equal_one():
    command = [str(MPIEXEC), "-n", "2", sys.executable, "-c", PROGRAM]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["equal", "equal"]
