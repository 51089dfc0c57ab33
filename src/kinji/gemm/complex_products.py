"""Complex operands as pairs of real ones.

Dimension letters: M rows of A, K inner dimension, N columns of B, R rows of an operand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from kinji.gemm.backend import kernels

COMPLEX_STEP = 2**0.5  # truncation takes less than one unit off each part
RealMultiply: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def three_products(multiply: RealMultiply, a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """Return A B from three real products: Re A Re B, Im A Im B and (Re A + Im A)(Re B + Im B).

    The sums of parts round, so the error of Im A B is small beside |A||B|, not beside (|Re A||Im B| + |Im A||Re B|).
    """
    real_MN, imaginary_MN = multiply(a_MK.real, b_KN.real), multiply(a_MK.imag, b_KN.imag)
    both_MN = multiply(a_MK.real + a_MK.imag, b_KN.real + b_KN.imag)
    return torch.complex(real_MN - imaginary_MN, both_MN - real_MN - imaginary_MN)


def propagate_complex(
    c_MN: torch.Tensor, a_MK: torch.Tensor, b_KN: torch.Tensor, finite_M: torch.Tensor, finite_N: torch.Tensor
) -> torch.Tensor:
    """Return C with the entries that an infinity or a NaN reaches as four real products make them."""
    on, b_NK = kernels(c_MN.device), b_KN.T
    real_MN, imaginary_MN = c_MN.real.contiguous(), c_MN.imag.contiguous()
    a, minus = torch.cat([a_MK.real, a_MK.imag], 1), torch.cat([a_MK.real, -a_MK.imag], 1)
    on.propagate(real_MN, minus, torch.cat([b_NK.real, b_NK.imag], 1), finite_M, finite_N)
    on.propagate(imaginary_MN, a, torch.cat([b_NK.imag, b_NK.real], 1), finite_M, finite_N)
    return torch.complex(real_MN, imaginary_MN)


def parts(x_RK: torch.Tensor) -> torch.Tensor:
    """Return real and imaginary parts side by side, R x 2K (contiguous)."""
    return torch.view_as_real(x_RK.contiguous()).flatten(1)
