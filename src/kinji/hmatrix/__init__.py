"""Hierarchical matrices of a kernel: H²-ULV, and the block low-rank Cholesky of LORAPO that it is compared with.

In the order the data flows: `geometry` and `kernels` (points and entries), `cluster_tree`, `admissibility`; then
`basis`, `h2_matrix`, `h2_ulv`, `substitution` for the one, `block_low_rank` for the other; `krylov` iterates with
either, `task_graph` counts what can run at once.
"""

from kinji.hmatrix.block_low_rank import BlockLowRankMatrix, compress_tiles, factorize_tiles, solve_tiles
from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.h2_matrix import H2Matrix, build_near_field, compress
from kinji.hmatrix.h2_ulv import H2Factor, factorize
from kinji.hmatrix.kernels import Kernel, true_product
from kinji.hmatrix.krylov import conjugate_gradients
from kinji.hmatrix.substitution import solve

__all__ = [
    "BlockLowRankMatrix",
    "H2Factor",
    "H2Matrix",
    "Kernel",
    "build_near_field",
    "compress",
    "compress_tiles",
    "conjugate_gradients",
    "factorize",
    "factorize_tiles",
    "fibonacci_sphere",
    "solve",
    "solve_tiles",
    "true_product",
]
