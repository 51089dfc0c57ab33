import pytest
import torch
from numpy.linalg import LinAlgError

from kinji.hmatrix.basis import check_positive_definite
from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.kernels import Kernel
from tests.hmatrix.problems import cube_points, dense_matrix, relative_error, sphere_problem


@pytest.fixture(scope="module")
def matrix():
    kernel, points, _, _ = sphere_problem(1500)
    return compress(build_near_field(kernel, points, leaf_size=32), rank=24, samples=400)


def test_bases_are_nested(matrix):
    for level, basis in matrix.levels.items():
        if level + 1 in matrix.levels:
            children = matrix.levels[level + 1].skeleton.reshape(basis.places.shape)
            assert torch.equal(basis.places, children)
        assert all(set(s.tolist()) <= set(p.tolist()) for s, p in zip(basis.skeleton, basis.places, strict=True))


def test_skeleton_rows_are_rows_of_the_identity(matrix):
    for basis in matrix.levels.values():
        for places, skeleton, interpolation in zip(basis.places, basis.skeleton, basis.interpolation, strict=True):
            rows = [places.tolist().index(point) for point in skeleton.tolist()]
            torch.testing.assert_close(
                interpolation[rows], torch.eye(basis.rank, dtype=torch.float64), rtol=0, atol=1e-13
            )


@pytest.mark.parametrize("fill_ins", [False, True])
def test_skeleton_rows_reproduce_the_whole_far_field(fill_ins):
    kernel, points, dense, _ = sphere_problem(1500)
    matrix = compress(
        build_near_field(kernel, points, leaf_size=32), rank=28, samples=600, fill_ins=fill_ins, tolerance=0.0
    )
    level = matrix.field.tree.depth
    basis = matrix.levels[level]
    near = matrix.field.pairs[level].near
    for box in range(len(basis.places)):
        neighbours = {int(b) for pair in near if box in pair for b in pair}
        own = basis.places[box][basis.places[box] < 1500]
        far = [p for b in range(len(basis.places)) if b not in neighbours for p in basis.places[b].tolist() if p < 1500]
        block = dense[own][:, far]
        through = basis.interpolation[box, basis.places[box] < 1500] @ dense[basis.skeleton[box]][:, far]
        assert relative_error(through, block) < (2e-3 if fill_ins else 5e-5)


def test_bases_span_the_fill_ins_when_asked_to():
    """The columns of K_ij K_jj^-1, weighted as in the elimination of box j, lie in the basis of box i."""
    kernel, points, dense, _ = sphere_problem(1024)
    field = build_near_field(kernel, points, leaf_size=64)
    level = field.tree.depth
    places, near = field.tree.members, field.pairs[level].near
    worst = {}
    for fill_ins in (False, True):
        basis = compress(field, rank=40, fill_ins=fill_ins, tolerance=0.0).levels[level]
        errors = []
        for i, j in near[1 << level :]:
            fill_in = dense[places[i]][:, places[j]] @ torch.linalg.inv(dense[places[j]][:, places[j]])
            rows = [places[i].tolist().index(point) for point in basis.skeleton[i].tolist()]
            errors.append(relative_error(basis.interpolation[i] @ fill_in[rows], fill_in))
        worst[fill_ins] = max(errors)
    assert worst[True] < 2e-2
    assert worst[True] < worst[False] / 5


def test_tolerance_sets_the_rank_below_the_cap():
    kernel, points, _, _ = sphere_problem(1500)
    field = build_near_field(kernel, points, leaf_size=64)
    loose = compress(field, rank=60, tolerance=1e-2, fill_ins=False)
    tight = compress(field, rank=60, tolerance=1e-6, fill_ins=False)
    for level in loose.levels:
        assert loose.levels[level].rank < tight.levels[level].rank <= 60


def test_indefinite_blocks_are_named():
    points = cube_points(600)
    kernel = Kernel("laplace", diagonal=0.1)
    assert torch.linalg.eigvalsh(dense_matrix(kernel, points))[0] < 0
    with pytest.raises(LinAlgError, match=r"level \d, box \d+: .* not positive definite .*: raise the diagonal"):
        compress(build_near_field(kernel, points, leaf_size=32, theta=1.0))


def test_the_first_failed_box_is_named():
    with pytest.raises(LinAlgError, match=r"level 3, box 1: .*pivot 5, 2 boxes in all"):
        check_positive_definite(torch.tensor([0, 5, 0, 2]), "level 3")
