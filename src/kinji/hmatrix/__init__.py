"""Hierarchical matrices of a kernel: H²-ULV, and the block low-rank Cholesky of LORAPO that it is compared with.

`factorize(points, kernel)` gives a solver of controlled accuracy. Behind it, as the data flows: `geometry`,
`point_file`, `point_cloud` and `kernels` (points and entries), `cluster_tree`, `admissibility`; then `basis`,
`h2_matrix`, `h2_ulv`, `substitution`, `krylov`, which call the batched routines of an `executor` (`compiled`,
`eager`); `distributed` shares the boxes out over MPI ranks. `block_low_rank` is the other side; `task_graph` counts
what can run at once.
"""

from kinji.hmatrix.block_low_rank import BlockLowRankMatrix, compress_tiles, factorize_tiles
from kinji.hmatrix.geometry import GEOMETRIES, PointSet, fibonacci_sphere, place_points
from kinji.hmatrix.h2_matrix import H2Matrix, build_near_field, compress
from kinji.hmatrix.h2_ulv import H2Factor
from kinji.hmatrix.kernels import Kernel, natural_diagonal, true_product
from kinji.hmatrix.krylov import conjugate_gradients
from kinji.hmatrix.point_cloud import measure_cells
from kinji.hmatrix.point_file import points_from_file
from kinji.hmatrix.solver import KernelSolver, SolverOptions, factorize
from kinji.hmatrix.substitution import solve
from kinji.hmatrix.tile_substitution import solve_tiles

__all__ = [
    "GEOMETRIES",
    "BlockLowRankMatrix",
    "H2Factor",
    "H2Matrix",
    "Kernel",
    "KernelSolver",
    "PointSet",
    "SolverOptions",
    "build_near_field",
    "compress",
    "compress_tiles",
    "conjugate_gradients",
    "factorize",
    "factorize_tiles",
    "fibonacci_sphere",
    "measure_cells",
    "natural_diagonal",
    "place_points",
    "points_from_file",
    "solve",
    "solve_tiles",
    "true_product",
]
