import dataclasses

import pytest
import torch
from numpy.linalg import LinAlgError

from kinji.hmatrix import compiled, eager
from kinji.hmatrix.basis import BasisLevel, check_factors, near_blocks, sketch_fill_ins
from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.kernels import Kernel
from tests.hmatrix.problems import cube_points, dense_matrix, normal, relative_error, sphere_problem

BOTH = pytest.mark.parametrize("on", [compiled, eager], ids=["compiled", "eager"])


@pytest.fixture(scope="module")
def matrix():
    kernel, points, _, _ = sphere_problem(1000)
    return compress(build_near_field(kernel, points, leaf_size=32), rank=24, samples=400)


def from_skeleton(basis, box, rows):
    """What the skeleton's rows of a block row make of all its rows."""
    skeleton = rows[basis.order[box, : basis.rank]]
    return basis.placed(skeleton[None], basis.interpolation[box] @ skeleton[None])[0]


def of_one_box(basis, box):
    at = slice(box, box + 1)
    return BasisLevel(basis.places[at], basis.order[at], basis.interpolation[at])


def test_bases_are_nested(matrix):
    assert len(matrix.levels) >= 2
    for level, basis in matrix.levels.items():
        if level + 1 in matrix.levels:
            children = matrix.levels[level + 1].skeleton.reshape(basis.places.shape)
            assert torch.equal(basis.places, children)
        assert torch.equal(basis.order.sort(dim=1).values, torch.arange(basis.order.shape[1]).expand_as(basis.order))
        for box, places in enumerate(basis.places):
            assert torch.equal(basis.skeleton[box], places[basis.order[box, : basis.rank]])


def test_placing_undoes_ordering(matrix):
    for basis in matrix.levels.values():
        x = normal(*basis.order.shape, 3)
        skeleton, complement = basis.ordered(x)
        assert skeleton.shape[1] == basis.rank
        assert torch.equal(skeleton[2, 0], x[2, basis.order[2, 0]])
        assert torch.equal(basis.placed(skeleton, complement), x)


def test_a_complement_takes_the_basis_to_zero(matrix):
    """``C^T [E + its interpolation] = 0`` with ``C = [-T^T; I]``."""
    for basis in matrix.levels.values():
        T, rank = basis.interpolation, basis.rank
        unit = torch.eye(rank, dtype=T.dtype).expand(len(T), rank, rank)
        skeleton, complement = basis.ordered(basis.placed(unit, T))
        assert not (complement - T @ skeleton).any()


@pytest.mark.parametrize(("fill_ins", "bound"), [("none", 5e-5), ("sc22", 2e-2), ("2023", 6e-3)])
def test_skeleton_rows_reproduce_the_whole_far_field(fill_ins, bound):
    kernel, points, dense, _ = sphere_problem(1000)
    matrix = compress(build_near_field(kernel, points, leaf_size=32), rank=28, samples=600, fill_ins=fill_ins)
    basis, near = matrix.levels[matrix.field.tree.depth], matrix.field.pairs[-1].near
    for box, places in enumerate(basis.places):
        one, true = of_one_box(basis, box), places < 1000
        neighbours = {int(b) for pair in near if box in pair for b in pair}
        far = torch.cat([basis.places[b] for b in range(len(basis.places)) if b not in neighbours])
        far = far[far < 1000]
        block = torch.zeros(len(places), len(far), dtype=torch.float64)
        block[true] = dense[places[true]][:, far]
        assert relative_error(from_skeleton(one, 0, block), block) < bound


def test_bases_span_the_fill_ins_when_asked_to():
    """The columns of K_ij K_jj^-1, weighted as in the elimination of box j, lie in the basis of box i."""
    kernel, points, dense, _ = sphere_problem(1024)
    field = build_near_field(kernel, points, leaf_size=64)
    places, near, worst = field.tree.members, field.pairs[-1].near, {}
    for fill_ins in ("none", "sc22", "2023"):
        basis = compress(field, rank=40, fill_ins=fill_ins, tolerance=0.0).levels[field.tree.depth]
        errors = []
        for i, j in near[len(places) :]:
            fill_in = dense[places[i]][:, places[j]] @ torch.linalg.inv(dense[places[j]][:, places[j]])
            errors.append(relative_error(from_skeleton(of_one_box(basis, i), 0, fill_in), fill_in))
        worst[fill_ins] = max(errors)
    assert worst["2023"] < 3e-2
    assert worst["2023"] < worst["none"] / 5
    assert worst["sc22"] < worst["none"] / 2


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_blocks_are_those_of_the_dense_matrix(on, dtype):
    kernel, points, dense, _ = sphere_problem(128)
    field = build_near_field(kernel, points, leaf_size=32)
    blocks = near_blocks(on, kernel, field.tree, field.tree.members, field.near(-1), torch.empty(0, dtype=dtype))
    for block, (i, j) in zip(blocks, field.near(-1), strict=True):
        exact = dense[field.tree.members[i]][:, field.tree.members[j]]
        torch.testing.assert_close(block, exact.to(dtype), rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)


@pytest.fixture
def three_boxes():
    """Blocks of three boxes, of which the first two and the last two are near; far sketch and random numbers."""
    near = torch.tensor([[0, 0], [1, 1], [2, 2], [1, 0], [2, 1]])
    blocks = normal(5, 4, 4)
    blocks[:3] = blocks[:3] @ blocks[:3].mT + torch.eye(4)
    return blocks, near, normal(3, 4, 6, seed=1), normal(3, 4, 6, seed=2)


@BOTH
def test_the_sketch_of_2023_is_neighbours_times_their_inverses(on, three_boxes):
    blocks, near, far, random = three_boxes
    weighted = torch.linalg.solve(blocks[:3], random)
    exact = far.clone()
    exact[0] += blocks[3].mT @ weighted[1]
    exact[1] += blocks[3] @ weighted[0] + blocks[4].mT @ weighted[2]
    exact[2] += blocks[4] @ weighted[1]
    kept = blocks.clone()
    sketch_fill_ins(on, blocks, near, far, "2023", random)
    assert relative_error(far, exact) < 1e-13
    assert torch.equal(blocks, kept)


@BOTH
def test_the_sketch_of_sc22_is_the_gram_matrix_scaled_to_the_far_field(on, three_boxes):
    blocks, near, far, random = three_boxes
    far[2] = 0.0
    gram = torch.stack(
        [
            blocks[3].mT @ blocks[3] @ random[0],
            (blocks[3] @ blocks[3].mT + blocks[4].mT @ blocks[4]) @ random[1],
            blocks[4] @ blocks[4].mT @ random[2],
        ]
    )
    scale = far.norm(dim=(1, 2)) / gram.norm(dim=(1, 2))
    scale[2] = 1.0  # nothing to scale to
    exact = far + gram * scale[:, None, None]
    sketch_fill_ins(on, blocks, near, far, "sc22", random)
    assert relative_error(far, exact) < 1e-13
    alone = normal(3, 4, 6)
    sketch_fill_ins(on, blocks[:3], near[:3], alone, "sc22", random)
    assert torch.equal(alone, normal(3, 4, 6))


@BOTH
def test_without_fill_ins_the_sketch_stays(on, three_boxes):
    blocks, near, far, random = three_boxes
    kept = far.clone()
    sketch_fill_ins(on, blocks, near, far, "none", random)
    assert torch.equal(far, kept)


def test_tolerance_sets_the_rank_below_the_cap():
    kernel, points, _, _ = sphere_problem(1000)
    field = build_near_field(kernel, points, leaf_size=64)
    loose = compress(field, rank=60, tolerance=1e-2, fill_ins="none")
    tight = compress(field, rank=60, tolerance=1e-6, fill_ins="none")
    for level in loose.levels:
        assert loose.levels[level].rank < tight.levels[level].rank <= 60


def test_the_seed_decides_and_repeats(matrix):
    again = compress(matrix.field, rank=24, samples=400)
    other = compress(matrix.field, rank=24, samples=400, seed=1)
    for level, basis in matrix.levels.items():
        assert torch.equal(basis.interpolation, again.levels[level].interpolation)
        assert not torch.equal(basis.interpolation, other.levels[level].interpolation)


@pytest.mark.parametrize("on", [None, eager], ids=["compiled", "eager"])
def test_indefinite_blocks_are_named(on):
    points = cube_points(600)
    kernel = Kernel("laplace", diagonal=0.1)
    assert torch.linalg.eigvalsh(dense_matrix(kernel, points))[0] < 0
    field = build_near_field(kernel, points, leaf_size=32, theta=1.0)
    with pytest.raises(LinAlgError, match=r"fill-ins of a level, box \d+: .* not positive definite .*: raise the diag"):
        compress(field if on is None else dataclasses.replace(field, on=on))


def test_the_first_failed_box_is_named():
    check_factors(torch.tensor([0, 0]), "level 3")
    with pytest.raises(LinAlgError, match=r"level 3, box 1: .*pivot 5, 2 boxes in all"):
        check_factors(torch.tensor([0, 5, 0, 2]), "level 3")
