"""MPI under mpiexec: whole training runs of 1, 2, 4 and 8 ranks equal training alone, and so does the loop."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mpi4py", reason="the mpi extra is not installed")
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec on this machine")
def test_mpi_ranks_equal_one():
    command = [str(MPIEXEC), "-n", "8", sys.executable, "-m", "mpi4py", "-m", "tests.kfac.distributed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=root, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["equal"]
