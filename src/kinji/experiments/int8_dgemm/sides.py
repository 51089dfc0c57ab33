"""Ways to multiply that are compared, and what identifies a product."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import threadpoolctl
import torch

from kinji.gemm import scheme_one, scheme_two
from kinji.gemm.ozaki_two import Scaling

Observation: TypeAlias = dict[str, int | float | str | bool]
Multiply: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

NARROW = 384  # rows of A and columns of B, at most, where accuracy and bits are the question
SAMPLES = 400


@dataclass(frozen=True)
class Side:
    """One way to multiply; `count` is the number of slices or moduli, 0 for native products."""

    method: str
    count: int
    multiply: Multiply


def native_sides(device: torch.device) -> list[Side]:
    """Return native DGEMM as torch calls it and, on the CPU, as NumPy does: two BLAS libraries."""
    sides = [Side("torch", 0, torch.matmul)]
    if device.type == "cpu":
        sides.append(Side("numpy", 0, lambda a, b: torch.from_numpy(a.numpy() @ b.numpy())))
    return sides


def slices_side(slices: int, *, grouped: bool = True) -> Side:
    """Return scheme I."""
    name = "scheme_one" if grouped else "scheme_one_ungrouped"
    return Side(name, slices, lambda a, b: scheme_one(a, b, slices=slices, grouped=grouped))


def moduli_side(moduli: int, *, accurate: bool = False) -> Side:
    """Return scheme II."""
    name = "scheme_two_accurate" if accurate else "scheme_two"
    scaling: Scaling = "accurate" if accurate else "fast"
    return Side(name, moduli, lambda a, b: scheme_two(a, b, moduli=moduli, scaling=scaling))


def blas_kernel(method: str, device: torch.device) -> str:
    """Name the BLAS behind a native side, since its kernel decides what "slower than native" means."""
    if device.type == "cuda":
        return f"cuBLAS of CUDA {torch.version.cuda}"
    if method == "numpy":
        kernels = {pool["architecture"] for pool in threadpoolctl.threadpool_info() if "architecture" in pool}
        return " ".join(sorted(kernels)) or "unknown"
    version = re.search(r"Math Kernel Library Version ([\d.]+)", torch.__config__.show())
    return f"MKL {version[1]}" if version else "unknown"


def digest(product: torch.Tensor) -> str:
    """Return 16 hexadecimal digits that two products share only if they are the same to the bit."""
    return hashlib.sha256(product.contiguous().numpy(force=True).tobytes()).hexdigest()[:16]
