import dataclasses
import functools

import numpy as np
import pytest
import torch
from numpy.linalg import LinAlgError

from kinji.hmatrix import compiled, eager
from kinji.hmatrix.basis import BasisLevel
from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.h2_ulv import FactorLevel, eliminate_complements, factorize, lifted_blocks, merge_blocks
from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.substitution import solve
from tests.hmatrix.problems import (
    LENGTH_SCALES,
    assembled,
    complement_and_lift,
    cube_points,
    dense_matrix,
    relative_error,
    sphere_problem,
)

LIFTS = pytest.mark.parametrize("lift", ["decoupled", "orthonormal"])


def solve_error(n, *, leaf_size=64, theta=2.0, compression=None, lift="decoupled", **problem):
    kernel, points, dense, x = sphere_problem(n, **problem)
    matrix = compress(build_near_field(kernel, points, theta=theta, leaf_size=leaf_size), **(compression or {}))
    return relative_error(solve(factorize(matrix, lift=lift), dense @ x), x)


@functools.cache
def small_matrix():
    """Several levels of boxes on 500 points, compressed so far that much is dropped."""
    kernel, points, _, _ = sphere_problem(500, diagonal=5.0)
    return compress(build_near_field(kernel, points, theta=1.0, leaf_size=16), rank=10)


@functools.cache
def small_factor(lift):
    return factorize(small_matrix(), lift=lift)


@pytest.mark.parametrize("theta", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("leaf_size", "rank"), [(32, 28), (64, 48)])
def test_the_solution_is_the_dense_one(theta, leaf_size, rank):
    assert solve_error(1100, leaf_size=leaf_size, theta=theta, compression={"rank": rank}) < 3e-3


def test_boxes_without_a_far_field_are_compressed_by_their_fill_ins():
    kernel, points, dense, x = sphere_problem(1024)
    matrix = compress(build_near_field(kernel, points, theta=3.0, leaf_size=64), rank=48, fill_ins="sc22")
    with_far_field = matrix.field.pairs[-1].far.flatten()
    assert len(set(with_far_field)) < len(matrix.field.tree.members)
    assert relative_error(solve(factorize(matrix), dense @ x), x) < 1e-4


@pytest.mark.parametrize("name", LENGTH_SCALES)
def test_other_kernels_are_solved_too(name):
    assert solve_error(1024, name=name, compression={"rank": 56}) < 1e-3


def test_volumes_are_solved_too():
    points = cube_points(800)
    kernel = Kernel("yukawa", diagonal=20.0, length_scale=2.0)
    dense = dense_matrix(kernel, points)
    x = torch.ones(800, 1, dtype=torch.float64)
    factor = factorize(compress(build_near_field(kernel, points, theta=1.0, leaf_size=50), rank=40))
    assert factor.levels
    assert relative_error(solve(factor, dense @ x), x) < 1e-2


@LIFTS
@pytest.mark.parametrize("method", ["cholesky", "lu"])
@pytest.mark.parametrize("fill_ins", ["none", "sc22", "2023"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 3e-4)])
def test_full_rank_is_exact(lift, method, fill_ins, dtype, bound):
    """With as many skeletons as points nothing is dropped at any level."""
    kernel, points, dense, x = sphere_problem(300, diagonal=1.0)
    field = build_near_field(kernel, points, theta=1.0, leaf_size=16, dtype=dtype)
    factor = factorize(compress(field, rank=10_000, tolerance=0.0, fill_ins=fill_ins), lift=lift, method=method)
    assert len(factor.levels) >= 2
    assert relative_error(solve(factor, dense @ x), x) < bound
    assert factor.logdet() == pytest.approx(float(torch.linalg.slogdet(dense)[1]), rel=bound)


@LIFTS
@pytest.mark.parametrize("method", ["cholesky", "lu"])
def test_the_eager_executor_factorizes_alike(lift, method):
    """What runs on a GPU, on the CPU, from the tree to the solution."""
    kernel, points, dense, x = sphere_problem(500, diagonal=5.0)
    field = build_near_field(kernel, points, theta=1.0, leaf_size=32)
    factors = [factorize(compress(f, rank=14), lift=lift, method=method) for f in (field, on_eager(field))]
    ours, theirs = (solve(factor, dense @ x) for factor in factors)
    assert relative_error(theirs, ours) < 1e-9
    assert factors[0].logdet() == pytest.approx(factors[1].logdet(), rel=1e-10)
    assert factors[0].nbytes == factors[1].nbytes


def on_eager(field):
    """The same near field, its blocks evaluated again by the other executor."""
    blocks = torch.empty_like(field.blocks)
    i, j = field.near(-1).T
    eager.kernel_blocks(field.kernel, field.tree.points, field.tree.members[i], field.tree.members[j], blocks)
    blocks[: len(field.tree.members)].diagonal(dim1=1, dim2=2).fill_(field.kernel.diagonal)
    return dataclasses.replace(field, on=eager, blocks=blocks)


@pytest.mark.parametrize("fill_ins", ["sc22", "2023"])
def test_with_fill_ins_the_error_falls_with_the_rank_and_without_it_does_not(fill_ins):
    options = [{"rank": rank, "fill_ins": f} for f in (fill_ins, "none") for rank in (24, 40, 56)]
    errors = np.array([solve_error(1024, diagonal=5.0, compression=o) for o in options]).reshape(2, 3)
    assert errors[0, 0] > 3 * errors[0, 1] > 9 * errors[0, 2]
    assert errors[1, 1] < 1.5 * errors[1, 2]
    assert errors[0, 2] < errors[1, 2] / 3


@pytest.mark.parametrize("fill_ins", ["none", "sc22", "2023"])
def test_the_decoupled_lift_drops_less(fill_ins):
    options = {"diagonal": 5.0, "compression": {"rank": 40, "fill_ins": fill_ins}}
    assert solve_error(1024, **options) < solve_error(1024, lift="orthonormal", **options) / 1.2


@LIFTS
def test_single_precision_is_as_accurate_as_the_rank_allows(lift):
    kernel, points, dense, x = sphere_problem(1024)
    errors = []
    for dtype in (torch.float64, torch.float32):
        factor = factorize(compress(build_near_field(kernel, points, leaf_size=64, dtype=dtype), rank=40), lift=lift)
        assert factor.root.triangles.dtype == dtype
        errors.append(relative_error(solve(factor, dense @ x), x))
    assert errors[1] == pytest.approx(errors[0], rel=0.1)


def test_a_broken_transfer_spoils_the_solution():
    kernel, points, dense, x = sphere_problem(1024)
    matrix = compress(build_near_field(kernel, points, leaf_size=32), rank=30)
    b = dense @ x
    right = relative_error(solve(factorize(matrix), b), x)
    for level, basis in matrix.levels.items():
        broken = dataclasses.replace(basis, interpolation=-basis.interpolation.roll(1, dims=1))
        spoilt = dataclasses.replace(matrix, levels=matrix.levels | {level: broken})
        assert relative_error(solve(factorize(spoilt, method="lu"), b), x) > 10 * right


@pytest.mark.parametrize("n", [3, 60, 127])
def test_one_leaf_is_a_dense_cholesky(n):
    kernel, points, dense, x = sphere_problem(n)
    factor = factorize(compress(build_near_field(kernel, points, leaf_size=64)))
    order = factor.matrix.field.tree.members[0]
    torch.testing.assert_close(factor.root.triangles[0].tril(), torch.linalg.cholesky(dense[order][:, order]))
    assert relative_error(solve(factor, dense @ x), x) < 1e-13
    assert factor.logdet() == pytest.approx(float(torch.logdet(dense)), rel=1e-13)
    assert not factor.levels


@LIFTS
def test_a_level_is_the_transformed_matrix(lift):
    """``P^T A P`` of the whole leaf level, P = [C U]: far blocks vanish, and the factors are those of its blocks."""
    factor = small_factor(lift)
    field, level = factor.matrix.field, factor.levels[0]
    boxes = len(level.basis.order)
    members = field.tree.members.flatten()
    ghosts = members >= field.tree.size
    A = dense_matrix(field.kernel, field.tree.points[: field.tree.size])[members.clamp(max=field.tree.size - 1)]
    A = A[:, members.clamp(max=field.tree.size - 1)].masked_fill(ghosts | ghosts[:, None], 0.0)
    A += torch.diag(ghosts * field.kernel.diagonal)
    C, U = complement_and_lift(level)
    near = assembled(torch.ones(len(level.near), 1, 1), level.near, boxes).bool()

    def blocks(left, right):
        return (left.mT @ A @ right).reshape(boxes, left.shape[1] // boxes, boxes, -1).transpose(1, 2)

    far = blocks(C, torch.eye(len(A), dtype=A.dtype))[~near]
    assert float(far.norm()) < 2e-2 * float(A.norm())
    triangles = level.complements.triangles.tril()
    assert relative_error(triangles @ triangles.mT, blocks(C, C).diagonal().permute(2, 0, 1)) < 1e-13
    lifted = blocks(U, U)[level.near[boxes:, 0], level.near[boxes:, 1]]
    assert relative_error(lifted_blocks(field.on, level), lifted) < 1e-13


def test_a_decoupled_lift_and_a_complement_share_nothing_of_their_own_block():
    for level in small_factor("decoupled").levels:
        C, U = complement_and_lift(level)
        own = torch.block_diag(*level.blocks[: len(level.lift)])
        assert float((U.mT @ own @ C).norm()) < 1e-13 * float(own.norm())
        assert level.decoupled


def test_an_orthonormal_lift_is_orthogonal_to_the_complements_at_every_level():
    """On the points: a box of a coarser level measures by what its children's lifts are there."""
    levels = small_factor("orthonormal").levels
    assert len(levels) >= 2
    leaves_from_places = torch.eye(levels[0].basis.order.numel(), dtype=torch.float64)
    for level in levels:
        C, U = (leaves_from_places @ part for part in complement_and_lift(level))
        assert float((U.mT @ C).norm()) < 1e-13 * float(U.norm() * C.norm())
        assert not level.decoupled
        leaves_from_places = U


@LIFTS
def test_the_next_level_has_the_schur_complements_and_the_lifted_and_the_far_blocks(lift):
    factor = small_factor(lift)
    finest = factor.matrix.field.tree.depth
    for below, (level, above) in enumerate(zip(factor.levels[:-1], factor.levels[1:], strict=True)):
        boxes, rank = len(level.lift), level.basis.rank
        C, U = complement_and_lift(level)
        A = assembled(level.blocks, level.near, boxes)
        own = torch.block_diag(*level.blocks[:boxes])
        E = U + C @ torch.block_diag(*level.lift)
        schur = E.mT @ (own - own @ C @ torch.linalg.solve(C.mT @ own @ C, C.mT @ own)) @ E
        pairs = factor.matrix.field.far(finest - below)
        expected = U.mT @ (A - own) @ U + schur + assembled(factor.matrix.couplings[finest - below], pairs, boxes)
        expected = expected.reshape(boxes // 2, 2 * rank, boxes // 2, 2 * rank)[above.near[:, 0], :, above.near[:, 1]]
        assert relative_error(above.blocks, expected) < 1e-13


def test_a_schur_complement_is_the_inverse_of_a_block_of_the_inverse():
    matrix = small_matrix()
    basis = matrix.levels[matrix.field.tree.depth]
    _, response, schur = eliminate_complements(matrix.field.on, matrix.field.blocks, basis, "lu", level=0)
    for box in range(len(schur)):
        T, order, rank = basis.interpolation[box], basis.order[box], basis.rank
        P = torch.eye(len(order), dtype=T.dtype)
        P[:rank, rank:] = -T.mT  # columns: E, C
        transformed = P.mT @ matrix.field.blocks[box][order][:, order] @ P
        assert relative_error(schur[box], torch.linalg.inv(torch.linalg.inv(transformed)[:rank, :rank])) < 1e-12
        assert (
            relative_error(response[box], torch.linalg.solve(transformed[rank:, rank:], transformed[rank:, :rank]))
            < 1e-12
        )


@pytest.mark.parametrize("n", [512, 900])
@LIFTS
def test_the_log_determinant_is_close_to_the_dense_one(n, lift):
    kernel, points, dense, _ = sphere_problem(n, diagonal=5.0)
    factor = factorize(compress(build_near_field(kernel, points, leaf_size=64), rank=48), lift=lift)
    assert factor.logdet() == pytest.approx(float(torch.logdet(dense)), rel=1e-4)


@LIFTS
@pytest.mark.parametrize("diagonal", [0.3, -6.0])
def test_lu_solves_an_indefinite_matrix(lift, diagonal):
    points = fibonacci_sphere(900)
    kernel = Kernel(diagonal=1.0)
    kernel.diagonal = diagonal  # the constructor admits only what can be positive definite
    dense = dense_matrix(kernel, points)
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert eigenvalues[0] < 0 < eigenvalues[-1]
    field = build_near_field(kernel, points, leaf_size=64)
    x = torch.linspace(-1.0, 1.0, 900, dtype=torch.float64)[:, None]
    exact = factorize(compress(field, rank=10_000, tolerance=0.0, fill_ins="none"), lift=lift, method="lu")
    assert relative_error(solve(exact, dense @ x), x) < 1e-9
    assert exact.logdet() == pytest.approx(float(torch.linalg.slogdet(dense)[1]), rel=1e-9)
    if diagonal < 0:
        close = factorize(compress(field, rank=50, fill_ins="sc22"), lift=lift, method="lu")
        assert relative_error(solve(close, dense @ x), x) < 2e-2


def test_any_order_of_boxes_gives_the_same_bits():
    matrix = small_matrix()
    level = factorize(matrix).levels[0]
    on, boxes = matrix.field.on, len(level.lift)
    generator = torch.Generator().manual_seed(3)
    order, pairs = (torch.randperm(k, generator=generator) for k in (boxes, len(level.blocks) - boxes))
    basis = BasisLevel(*(getattr(level.basis, name)[order] for name in ("places", "order", "interpolation")))
    straight = eliminate_complements(on, level.blocks, level.basis, "cholesky", level=0)
    shuffled = eliminate_complements(on, level.blocks[order], basis, "cholesky", level=0)
    for before, after in zip(
        (straight[0].triangles, *straight[1:]), (shuffled[0].triangles, *shuffled[1:]), strict=True
    ):
        assert torch.equal(before[order], after)
    blocks = torch.cat([level.blocks[order], level.blocks[boxes:][pairs]])
    near = torch.argsort(order)[torch.cat([level.near[order], level.near[boxes:][pairs]])]
    lifted = lifted_blocks(on, FactorLevel(basis, shuffled[0], shuffled[1], True, blocks, near))
    whole = lifted_blocks(on, FactorLevel(level.basis, straight[0], straight[1], True, level.blocks, level.near))
    assert torch.equal(lifted, whole[pairs])


def test_a_box_depends_on_no_other():
    """Changing one box's block changes that box's factors and no other's."""
    matrix = small_matrix()
    basis = matrix.levels[matrix.field.tree.depth]
    changed = matrix.field.blocks.clone()
    changed[3] *= 2.0
    changed[len(basis.order) :] *= 3.0
    before, after = (
        eliminate_complements(matrix.field.on, blocks, basis, "cholesky", level=0)
        for blocks in (matrix.field.blocks, changed)
    )
    differ = [
        box for box in range(len(basis.order)) if not torch.equal(before[0].triangles[box], after[0].triangles[box])
    ]
    assert differ == [3]
    assert [box for box in range(len(basis.order)) if not torch.equal(before[2][box], after[2][box])] == [3]


def test_merging_assembles_the_parents_matrix():
    whole = torch.randn(8, 8, dtype=torch.float64)
    whole = whole + whole.mT
    children = np.array([(i, j) for i in range(4) for j in range(i + 1)])
    blocks = torch.stack([whole[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] for i, j in children])
    order = np.random.default_rng(0).permutation(len(children))
    parents = np.array([(0, 0), (1, 1), (1, 0)])
    pieces = [(blocks[at], children[at]) for at in (order[:3], order[3:])]
    merged = merge_blocks(compiled, pieces, parents)
    for block, (i, j) in zip(merged, parents, strict=True):
        assert torch.equal(block, whole[4 * i : 4 * i + 4, 4 * j : 4 * j + 4])


def test_flops_and_bytes_are_linear_in_the_number_of_points():
    sizes = []
    for n in (4096, 8192):
        kernel = Kernel(diagonal=100.0)
        factor = factorize(compress(build_near_field(kernel, fibonacci_sphere(n), leaf_size=32), rank=16, samples=64))
        assert factor.flops < factor.published_flops
        sizes.append((factor.flops, factor.published_flops, factor.nbytes))
    assert all(large < 2.2 * small for small, large in zip(*sizes, strict=True))


def test_flops_and_bytes_of_one_leaf_are_those_of_its_cholesky():
    kernel, points, _, _ = sphere_problem(60)
    factor = factorize(compress(build_near_field(kernel, points, leaf_size=64)))
    assert factor.flops == factor.published_flops == 60**3 / 3.0
    assert factor.nbytes == 8 * 60**2


def test_an_indefinite_matrix_is_refused_with_the_place():
    kernel = Kernel(diagonal=0.3)
    matrix = compress(build_near_field(kernel, fibonacci_sphere(1024), leaf_size=64), rank=40, fill_ins="none")
    with pytest.raises(LinAlgError, match=r"(level \d|root), box \d+: .* raise the diagonal"):
        factorize(matrix)


@pytest.mark.parametrize("method", ["cholesky", "lu"])
def test_a_singular_root_is_refused(method):
    kernel, points, _, _ = sphere_problem(60)
    field = build_near_field(kernel, points, leaf_size=64)
    field.blocks.zero_()
    with pytest.raises(LinAlgError, match=r"root, box 0: .*pivot 1"):
        factorize(compress(field), method=method)


@pytest.mark.parametrize("options", [{"lift": "none"}, {"method": "qr"}])
def test_unknown_ways_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options.values()))!r}.*decoupled or orthonormal, cholesky or lu"):
        factorize(small_matrix(), **options)
