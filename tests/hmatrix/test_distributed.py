"""Boxes shared out over MPI ranks: everything equals what one process computes. The work itself is `on_ranks`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kinji.hmatrix.admissibility import find_pairs
from kinji.hmatrix.cluster_tree import build_tree
from kinji.hmatrix.distributed import Ranks, share_out
from kinji.hmatrix.geometry import fibonacci_sphere
from tests.hmatrix.on_ranks import compile_all

MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    pytest.importorskip("mpi4py", reason="the mpi extra is not installed")
    if MPIEXEC is None:
        pytest.skip("no mpiexec on this machine")
    compile_all()
    file = tmp_path_factory.mktemp("ranks") / "findings.json"
    command = [MPIEXEC, "-n", "4", sys.executable, "-m", "mpi4py", "-m", "tests.hmatrix.on_ranks", str(file)]
    single = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    root = Path(__file__).parents[2]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root, env=single)
    assert run.returncode == 0, run.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("variant", ["2023 decoupled cholesky", "sc22 orthonormal lu"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_compute_what_one_process_computes(findings, ranks, variant):
    found = findings[f"{ranks} {variant}"]
    assert set(found) == {"product", "parallel", "diagonal", "logdet", "length", "ranks"}
    assert max(found.values()) <= 1e-12, found


@pytest.mark.parametrize("problem", ["few leaves", "dense", "volume", "hss", "single", "eager"])
def test_other_structures_do_too(findings, problem):
    """Fewer leaves than ranks, no far pairs, no near pairs: levels without halo or gathering; then single precision
    and the other executor."""
    assert max(findings[problem].values()) <= 1e-12, findings[problem]


def test_conjugate_gradients_sum_over_the_ranks(findings):
    assert findings["solver"]["solution"] <= 1e-12
    assert findings["solver"]["iterations"] == 0


def test_a_solver_on_ranks_can_be_put_away_and_restored(findings):
    assert findings["solver"]["restored"] <= 1e-12


def test_what_is_sent_grows_with_the_surface_of_a_share_not_with_its_points(findings):
    small, large = findings["costs"]
    for content in ("build", "apply"):
        assert 1.5 * small[content] < large[content] < 2.6 * small[content]  # 4 times the points
    assert large["gathered"] == small["gathered"] > 0


def test_a_rank_stores_its_part(findings):
    large = findings["costs"][1]
    assert large["stored"] < 0.4 * large["stored alone"]


def test_what_fails_on_one_rank_fails_on_all_with_the_box_named(findings):
    for messages in findings["indefinite"]:
        places = [message.partition(": ")[2] for message in messages]
        assert "is not positive definite" in places[0]
        assert len(messages) == 5 and len(set(places)) == 1
        assert len({message.partition("box")[2] for message in messages}) == 1


def test_what_several_ranks_cannot_do_is_refused(findings):
    assert "on several ranks choose parallel" in findings["sequential"]
    assert findings["three"].startswith("3 ranks: ") and "1, 2, 4, 8" in findings["three"]


class FakeComm:
    """A place among ranks, for what is decided without messages."""

    def __init__(self, rank, size):
        self.Get_rank, self.Get_size = lambda: rank, lambda: size


@pytest.mark.parametrize("theta", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_every_rank_knows_what_the_others_send_it(size, theta):
    """What rank r lists for rank k to send is what k lists for r, box by box; local numbers stand for global ones."""
    tree = build_tree(fibonacci_sphere(1000), leaf_size=16)
    pairs = find_pairs(tree, theta=theta)
    shares = [share_out(tree, pairs, Ranks(FakeComm(rank, size))) for rank in range(size)]
    for level in range(len(pairs)):
        for kind in ("near", "far"):
            parts = [getattr(share.levels[level], kind) for share in shares]
            if parts[0].halo is None:
                assert all(np.array_equal(part.pairs, getattr(pairs[level], kind)) for part in parts)
                continue
            each = (1 << level) // size
            outgoing = [
                np.split(p.halo.sent.numpy() + r * each, np.cumsum(p.halo.sent_counts)[:-1])
                for r, p in enumerate(parts)
            ]
            for rank, part in enumerate(parts):
                arriving = np.concatenate([outgoing[other][rank] for other in range(size)])
                assert part.halo.counts == [len(outgoing[other][rank]) for other in range(size)]
                boxes = np.concatenate([np.arange(rank * each, (rank + 1) * each), arriving])
                assert np.array_equal(boxes[part.local.numpy()], part.pairs)
            assert {tuple(p) for part in parts for p in part.pairs} == {tuple(p) for p in getattr(pairs[level], kind)}


def test_the_rows_of_the_ranks_are_all_points_once():
    tree = build_tree(fibonacci_sphere(1000), leaf_size=16)
    shares = [share_out(tree, find_pairs(tree, theta=2.0), Ranks(FakeComm(rank, 4))) for rank in range(4)]
    assert torch.equal(torch.cat([share.rows for share in shares]).sort().values, torch.arange(1000))
    for share in shares:
        x = torch.randn(len(share.rows), 2)
        assert torch.equal(share.own.gather(share.own.scatter(x)), x)


@pytest.mark.parametrize("boxes", [1, 8, 32])
def test_shares_of_random_numbers_are_those_of_one_draw(boxes):
    tree = build_tree(fibonacci_sphere(1000), leaf_size=16)
    pairs = find_pairs(tree, theta=2.0)
    level = boxes.bit_length() - 1
    for dtype in (torch.float64, torch.float32):
        whole = torch.randn(boxes, 7, 9, generator=torch.Generator().manual_seed(2), dtype=dtype)
        for rank in range(4):
            share = share_out(tree, pairs, Ranks(FakeComm(rank, 4))).levels[level]
            drawn = share.draw((7, 9), torch.Generator().manual_seed(2), dtype)
            assert torch.equal(drawn, whole[share.own])
