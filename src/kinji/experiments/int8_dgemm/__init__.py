"""FP64 products on the INT8 unit: accuracy, time, energy and bits of both Ozaki schemes beside native DGEMM.

Rows are told apart by `quantity`:

``accuracy``
    max |C' - C| / (|A| |B|) over sampled entries, in units of 2^-53, with its rigorous bound and the digest of C'.
``guarantee``
    What `kinji.gemm.matmul` makes of an accuracy asked for: its choice, the bound it proves, the error.
``time``, ``energy``
    One raw repetition of each side, interleaved; joules in a run of their own.
``identity``
    Digests of C' under changes that leave exact arithmetic alone.
``adversarial``
    What comes of operands made to fool, by the published rule for the number of slices and by the bound.
``non_finite``
    Entries that differ in kind (finite, NaN, either infinity) from native DGEMM's.
``factorization``
    Backward error of Cholesky and LU factorizations against the condition number, by the product of their updates.

Products are n x n x n where time is the question. Elsewhere rows of A and columns of B are a part of theirs: an entry
depends on one of each and on the inner dimension n. On CUDA, native DGEMM is cuBLAS's alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context
from kinji.experiments.int8_dgemm.accuracy import compare_accuracy
from kinji.experiments.int8_dgemm.adversarial import try_adversarial
from kinji.experiments.int8_dgemm.energy import measure_energy
from kinji.experiments.int8_dgemm.factorization import compare_factorizations
from kinji.experiments.int8_dgemm.identity import compare_bits
from kinji.experiments.int8_dgemm.non_finite import compare_kinds
from kinji.experiments.int8_dgemm.sides import Observation
from kinji.experiments.int8_dgemm.timing import compare_time
from kinji.gemm import cpu
from kinji.gemm.ozaki_one import bits_per_slice

COSTS = (compare_time, measure_energy)
JUDGEMENTS = (compare_accuracy, compare_bits, try_adversarial, compare_kinds, compare_factorizations)


def measure(case: Int8DgemmCase, context: Context) -> Iterator[Observation]:
    """Yield the observations of one n, part by part."""
    device = torch.device(context.device)
    unit: Observation = {"bits": bits_per_slice(case.n)}
    if device.type == "cpu":
        unit["int8_is_exact"] = cpu.int8_is_exact()
    for part in COSTS + JUDGEMENTS if case.accuracy else COSTS:
        for observation in part(case, context, device):
            yield {**observation, **unit}
