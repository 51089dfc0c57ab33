"""Which kernels multiply on a device: `kinji.gemm.cpu` or `kinji.gemm.cuda`, two modules with the same functions.

Both give the same bits: every operation but the last roundings is exact, and those are made in one order.

Dimension letters: R rows of an operand (rows of A, columns of B), K inner dimension, M rows and N columns of the
product, S slices, L moduli, P products.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

import torch

from kinji.gemm.moduli import Moduli
from kinji.gemm.scales import RowScales


class Kernels(Protocol):
    """What a back end offers. All matrices are torch tensors on its device, contiguous unless said otherwise."""

    def workspace(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return uninitialized memory, lost to the next call of the same name."""

    def release_workspace(self) -> None:
        """Give the memory of all names back."""

    def depth(self, k: int) -> int:
        """Return the inner dimension to store: k, or more to meet the device's alignment."""

    def row_scales(self, x_RK: torch.Tensor) -> RowScales:
        """Measure each row of FP64 numbers."""

    def split(
        self, x_RK: torch.Tensor, scales: RowScales, numbers: Sequence[int], bits: int, digits_RSK: torch.Tensor
    ) -> None:
        """Write the signed digits of slices `numbers` (from 1), int8, R x S x depth(K), zero in the padding.

        Digit s of x is the `bits` bits of |x| below 2^(e - (s - 1) bits), with the sign of x; rows that are not finite
        get zeros.
        """

    def residues(
        self,
        x_RK: torch.Tensor,
        shift_R: torch.Tensor,
        finite_R: torch.Tensor,
        constants: Moduli,
        out_LRK: torch.Tensor,
    ) -> None:
        """Write trunc(2^shift x) mod p, int8 in [-p / 2, p / 2], 128 as -128, L x R x depth(K), zero in the padding."""

    def multiply_int8(self, a_MK: torch.Tensor, b_NK: torch.Tensor, out_MN: torch.Tensor) -> None:
        """Write the exact A B^T (int32) of int8 operands; their rows may be strided."""

    def accumulate(
        self,
        products_PMN: torch.Tensor,
        diagonal_P: Sequence[int],
        bits: int,
        exponent_M: torch.Tensor,
        exponent_N: torch.Tensor,
    ) -> torch.Tensor:
        """Return 2^(e_i + f_j) sum_t 2^(-b (t + 1)) D_t (FP64), by Horner's rule from the last diagonal on.

        D_t is the exact sum of the products (int32) with diagonal_P = t (ascending from 1); each step rounds twice,
        2^-b C and the addition of D_t, and the scaling where the result is subnormal.
        """

    def reconstruct(
        self, products_PMN: torch.Tensor, constants: Moduli, exponent_M: torch.Tensor, exponent_N: torch.Tensor
    ) -> torch.Tensor:
        """Return 2^(e_i + f_j) x (FP64), x the integer of least magnitude congruent to the products mod every p.

        P counts the moduli and, faster, the blocks of the inner dimension, whose products (int32) add up.
        """

    def propagate(
        self, c_MN: torch.Tensor, a_MK: torch.Tensor, b_NK: torch.Tensor, finite_M: torch.Tensor, finite_N: torch.Tensor
    ) -> None:
        """Write what IEEE arithmetic makes of the entries of A B^T that an infinity or a NaN reaches, in place."""

    def worst_ratio(
        self, lower_MN: torch.Tensor, x_M: torch.Tensor, y_M: torch.Tensor, x_N: torch.Tensor, y_N: torch.Tensor
    ) -> tuple[float, float]:
        """Return the greatest (x_i y_j + y_i x_j) / lower_ij, and the least lower_ij, where x_i y_j + y_i x_j > 0."""


def kernels(device: torch.device) -> Kernels:
    """Return the back end of `device`; raise ValueError if there is none for it."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"operands on {device}: kinji.gemm multiplies on cpu and cuda; move them with .to(device).")
    return cast(Kernels, importlib.import_module(f"kinji.gemm.{device.type}"))


def release_workspace(device: torch.device | str = "cpu") -> None:
    """Give back the memory that products on `device` keep for the next one of their size.

    On the CPU it belongs to the calling thread: of a product of n x n by N moduli, 6 N n^2 bytes.
    """
    kernels(torch.device(device)).release_workspace()
