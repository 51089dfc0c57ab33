import pytest
import torch

from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.h2_ulv import factorize
from kinji.hmatrix.substitution import solve
from tests.hmatrix.problems import relative_error, sphere_problem


@pytest.fixture(scope="module")
def problem():
    kernel, points, dense, x = sphere_problem(1100, diagonal=5.0)
    return factorize(compress(build_near_field(kernel, points, leaf_size=32), rank=24)), dense, x


@pytest.mark.parametrize("substitution", ["parallel", "sequential"])
def test_the_inverse_is_symmetric_positive_definite_and_close_to_the_true_one(problem, substitution):
    factor, dense, _ = problem
    inverse = solve(factor, torch.eye(1100, dtype=torch.float64), substitution=substitution)
    assert relative_error(inverse, inverse.mT) < 1e-12
    assert torch.linalg.eigvalsh(inverse)[0] > 0
    assert relative_error(inverse, torch.linalg.inv(dense)) < 5e-2


def test_both_substitutions_agree_to_second_order(problem):
    factor, dense, x = problem
    b = dense @ x
    parallel, sequential = solve(factor, b), solve(factor, b, substitution="sequential")
    error = relative_error(parallel, x)
    assert 0.0 < relative_error(parallel, sequential) < error
    assert relative_error(sequential, x) == pytest.approx(error, rel=0.3)


def test_the_sequential_sweep_inverts_its_triangular_factors(problem):
    """The sweep solves with (I + E) of each level exactly: check it against dense triangular matrices."""
    from kinji.hmatrix.substitution import _invert_sequential

    level = problem[0].levels[0]
    boxes, size = len(level.transform), level.transform.shape[1] - level.rank
    dense = torch.eye(boxes * size, dtype=torch.float64).reshape(boxes, size, boxes, size)
    for (i, j), block in zip(level.pairs[boxes:].tolist(), level.blocks[boxes:], strict=True):
        dense[i, :, j] = block[level.rank :, level.rank :]
    dense = dense.reshape(boxes * size, boxes * size)
    c = torch.randn(boxes, size, 2, dtype=torch.float64)
    for transposed, matrix in ((False, dense), (True, dense.mT)):
        expected = torch.linalg.solve(matrix, c.flatten(0, 1)).reshape(c.shape)
        assert relative_error(_invert_sequential(level, c, transposed=transposed), expected) < 1e-13


def test_several_right_hand_sides_are_solved_at_once(problem):
    factor, dense, x = problem
    together = solve(factor, dense @ x)
    apart = torch.cat([solve(factor, dense @ x[:, k : k + 1]) for k in range(x.shape[1])], dim=1)
    assert relative_error(together, apart) < 1e-12


@pytest.mark.parametrize("b", [torch.ones(1100, dtype=torch.float64), torch.ones(7, 1, dtype=torch.float64)])
def test_a_misshapen_right_hand_side_is_refused(problem, b):
    with pytest.raises(ValueError, match=r"expected \(1100, number of sides\)"):
        solve(problem[0], b)


def test_an_unknown_substitution_is_refused(problem):
    with pytest.raises(ValueError, match="'neumann': choose parallel or sequential"):
        solve(problem[0], problem[2], substitution="neumann")
