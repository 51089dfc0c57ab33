"""Solution of a kernel matrix in O(N) to a given accuracy: the whole of the package behind one function.

Two compressions of one matrix: an H2 product in double precision, of bases for the far field alone, and an H2-ULV
factorization, in single precision, of bases that span the fill-ins too. The first is accurate, the second cheap;
conjugate gradients with the second as preconditioner bring the accuracy of the first in a few iterations, whatever the
fixed rank leaves at this N.

Dimension letters: N points, K right-hand sides.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from kinji.hmatrix.basis import BasisLevel, FillIns
from kinji.hmatrix.distributed import Ranks
from kinji.hmatrix.executor import Factors, Method, cores_for_loops
from kinji.hmatrix.h2_matrix import H2Matrix, NearField, build_near_field, compress
from kinji.hmatrix.h2_ulv import FactorLevel, H2Factor
from kinji.hmatrix.h2_ulv import factorize as factorize_matrix
from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.krylov import IterativeSolution, conjugate_gradients
from kinji.hmatrix.memory import check_memory, solver_bytes
from kinji.hmatrix.substitution import solve


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """How to compress and to factorize.

    Attributes
    ----------
    theta : float
        Admissibility constant (`admissibility.find_pairs`).
    leaf_size : int
        Least number of points of a leaf.
    tolerance : float
        Relative accuracy of the far field of the product, at most `largest_rank`.
    largest_rank : int
        Largest rank of the product.
    rank : int
        Rank of the factors.
    samples : int
        Far-field samples per box for the product; half as many for the factors.
    fill_ins : {"none", "sc22", "2023"}
        What the bases of the factors span beside the far field (`basis`).
    method : {"cholesky", "lu"}
        Factorization of diagonal blocks. Iterations need a definite matrix, so with LU only `KernelSolver.precondition`
        is of use.
    double : bool
        Factors in double precision.
    seed : int
        Seed of the sketches.
    """

    theta: float = 2.0
    leaf_size: int = 256
    tolerance: float = 1e-8
    largest_rank: int = 200
    rank: int = 80
    samples: int = 1000
    fill_ins: FillIns = "sc22"
    method: Method = "cholesky"
    double: bool = False
    seed: int = 0


@dataclass(frozen=True)
class KernelSolver:
    """A kernel matrix that can be multiplied with and solved for, both in O(N).

    Attributes
    ----------
    options : SolverOptions
        How it was made.
    operator : H2Matrix
        The product.
    factor : H2Factor
        The preconditioner.
    """

    options: SolverOptions
    operator: H2Matrix
    factor: H2Factor

    def matvec(self, x: Tensor) -> Tensor:
        """Multiply with vectors, shape ``(N,)`` or ``(N, K)``."""
        return self.operator.matvec(_columns(x, self.size)).reshape(x.shape)

    def precondition(self, b: Tensor) -> Tensor:
        """Solve by one substitution, to the accuracy of the factors alone, shape ``(N,)`` or ``(N, K)``."""
        return solve(self.factor, _columns(b, self.size)).reshape(b.shape)

    def solve(self, b: Tensor, *, tolerance: float = 1e-8, max_iterations: int = 100) -> Tensor:
        """Solve for vectors, shape ``(N,)`` or ``(N, K)``, to a relative residual of the H2 product.

        Raises
        ------
        ValueError
            If the shape is wrong.
        ArithmeticError
            If `max_iterations` do not reach the tolerance: raise the rank.
        numpy.linalg.LinAlgError
            If the matrix or its factors turn out not to be positive definite.
        """
        solution = self.iterate(b, tolerance=tolerance, max_iterations=max_iterations)
        if not solution.converged:
            raise ArithmeticError(
                f"no residual of {tolerance:g} after {max_iterations} iterations: raise the rank of the factors "
                f"(now {self.options.rank}), max_iterations or the tolerance"
            )
        return solution.x.reshape(b.shape)

    @cores_for_loops()
    def iterate(self, b: Tensor, *, tolerance: float = 1e-8, max_iterations: int = 100) -> IterativeSolution:
        """Return what `solve` comes to, with the number of iterations, converged or not."""
        return conjugate_gradients(
            self.operator.matvec,
            _columns(b, self.size),
            precondition=lambda r: solve(self.factor, r),
            tolerance=tolerance,
            max_iterations=max_iterations,
            total=self.operator.field.shares.total,
        )

    def logdet(self) -> float:
        """Return log |det A| as the factors have it: its relative error is about that of `precondition`."""
        return self.factor.logdet()

    @property
    def size(self) -> int:
        """Number of points, N; on several ranks, of those that are here."""
        return self.operator.field.shares.own.size

    @property
    def nbytes(self) -> int:
        """Bytes of the product and of the factors."""
        return self.operator.nbytes + self.factor.nbytes

    def as_linear_operator(self) -> LinearOperator:
        """Return the product for SciPy."""
        return self._linear_operator(self.operator.matvec)

    def as_preconditioner(self) -> LinearOperator:
        """Return one substitution for SciPy, as the ``M`` of its iterations."""
        return self._linear_operator(lambda b: solve(self.factor, b))

    def _linear_operator(self, apply: Any) -> LinearOperator:
        def columns(x: np.ndarray) -> np.ndarray:
            columnsNK = torch.from_numpy(np.array(x, dtype=np.float64)).reshape(self.size, -1)
            return apply(columnsNK.to(self.operator.field.blocks.device)).numpy(force=True)

        return LinearOperator((self.size, self.size), matvec=columns, matmat=columns, rmatvec=columns, dtype=np.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return all that `from_state` needs: numbers, strings and tensors; near blocks of leaves are made anew."""
        field = self.operator.field
        return {
            "kernel": {"name": field.kernel.name, **_kernel_parameters(field.kernel)},
            "points": field.tree.points[: field.tree.size],
            "options": asdict(self.options),
            "operator": [_bases(self.operator), self.operator.couplings],
            "preconditioner": [_bases(self.factor.matrix), self.factor.matrix.couplings],
            "levels": [
                {"complements": tuple(x.complements), "lift": x.lift, "blocks": x.blocks}
                for x in self.factor.levels[1:]
            ],
            "leaves": [{"complements": tuple(x.complements), "lift": x.lift} for x in self.factor.levels[:1]],
            "root": tuple(self.factor.root),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], *, comm: Any = None) -> Self:
        """Return the solver that `state_dict` was taken of, on as many ranks; KeyError names what is missing."""
        options = SolverOptions(**state["options"])
        field = _near_field(state["points"], Kernel(**state["kernel"]), options, comm)
        precise = _matrix(field, *state["operator"])
        rough = _matrix(_in_precision_of(field, options), *state["preconditioner"])
        blocks = [rough.field.blocks, *(level["blocks"] for level in state["levels"])]
        levels = [
            FactorLevel(basis, Factors(*x["complements"]), x["lift"], True, block, field.near(level))
            for (level, basis), x, block in zip(
                rough.levels.items(), [*state["leaves"], *state["levels"]], blocks, strict=False
            )
        ]
        return cls(options, precise, H2Factor(rough, levels, Factors(*state["root"])))


def factorize(points: Tensor, kernel: Kernel, *, comm: Any = None, **options: Any) -> KernelSolver:
    """Compress and factorize the matrix of a kernel.

    Parameters
    ----------
    points : Tensor
        Distinct finite points, shape ``(N, 3)``, float64, on the device to work on.
    kernel : Kernel
        Symmetric kernel with its diagonal.
    comm : mpi4py communicator, optional
        Ranks to share the boxes out to, a power of two; each calls this, and the methods of what it returns, alike.
        Vectors then have the rows ``.operator.field.shares.rows`` of the rank only (`distributed`).
    **options
        Fields of `SolverOptions`.

    Returns
    -------
    KernelSolver
        ``.solve(b)``, ``.matvec(x)``, ``.logdet()``.

    Raises
    ------
    TypeError, ValueError
        If the points, the kernel or an option are unusable.
    MemoryError
        If the matrix will not fit: before anything large is allocated.
    numpy.linalg.LinAlgError
        If a diagonal block is not positive definite; it names the level, the box and the remedy.
    """
    chosen = SolverOptions(**options)
    field = _near_field(points, kernel, chosen, comm)
    precise = compress(
        field,
        rank=chosen.largest_rank,
        tolerance=chosen.tolerance,
        samples=chosen.samples,
        fill_ins="none",
        seed=chosen.seed,
    )
    rough = compress(
        _in_precision_of(field, chosen),
        rank=chosen.rank,
        samples=max(1, chosen.samples // 2),
        fill_ins=chosen.fill_ins,
        seed=chosen.seed,
    )
    return KernelSolver(chosen, precise, factorize_matrix(rough, method=chosen.method))


def _near_field(points: Tensor, kernel: Kernel, options: SolverOptions, comm: Any) -> NearField:
    def foresee(tree: Any, pairs: Any) -> None:
        needed = solver_bytes(tree, pairs, ranks=(options.largest_rank, options.rank), double=options.double)
        check_memory(needed // Ranks(comm).size, points.device, "the near blocks, bases and factors")

    theta, leaf_size = options.theta, options.leaf_size
    return build_near_field(kernel, points, theta=theta, leaf_size=leaf_size, foresee=foresee, comm=comm)


def _in_precision_of(field: NearField, options: SolverOptions) -> NearField:
    return field if options.double else replace(field, blocks=field.blocks.float())


def _columns(x: Tensor, size: int) -> Tensor:
    if x.ndim not in (1, 2) or len(x) != size or x.numel() == 0:
        raise ValueError(
            f"vectors have shape {tuple(x.shape)}: expected ({size},) or ({size}, number of vectors), at least one"
        )
    return x.reshape(size, -1)


def _kernel_parameters(kernel: Kernel) -> dict[str, float]:
    return {"diagonal": kernel.diagonal, "length_scale": kernel.length_scale}


def _bases(matrix: H2Matrix) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    return {level: (basis.places, basis.order, basis.interpolation) for level, basis in matrix.levels.items()}


def _matrix(
    field: NearField, bases: dict[int, tuple[Tensor, Tensor, Tensor]], couplings: dict[int, Tensor]
) -> H2Matrix:
    return H2Matrix(field, {level: BasisLevel(*arrays) for level, arrays in bases.items()}, couplings)
