"""The kernels of both schemes on an NVIDIA GPU: one kernel for each step (kernels.cu), and cuBLAS's INT8 product.

Run on an H200. Where there is no GPU the tests compile the kernels for sm_80 and sm_90, and run all of this module on
the CPU, with the kernels compiled for it, to the bits of `kinji.gemm.cpu`. That module has the same functions;
`kinji.gemm.backend` says what each is to do.

Operands are torch tensors on the current CUDA device, and everything runs on torch's current stream. Nothing here waits
for the GPU but `worst_ratio`, and a table of constants that is needed for the first time.

Dimension letters: R rows of an operand (rows of A, columns of B), K inner dimension, M rows and N columns of the
product, S slices, L moduli, P products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinji.gemm.moduli import Moduli
from kinji.gemm.scales import RowScales

DEVICE = torch.device("cuda")
SOURCE = Path(__file__).with_name("kernels.cu")
THREADS = 256
ROW_THREADS = 1024  # few rows in flight: their second reading comes from the cache
NEIGHBOURS = 4  # entries of a row for one thread that writes bytes
GROUP = 4  # moduli are padded to groups
TILE = 32
RECIPROCAL_BITS = 38
CHUNK_BITS = 20
DEPTH_MULTIPLE = 16  # INT8 tensor cores: rows of 16 bytes, and sums of at least 16 products
COLUMN_MULTIPLE = 4  # of the INT32 product; with other leading dimensions cuBLAS fails on some GPUs
MODULUS = np.dtype([("p", "i4"), ("reciprocal", "i4"), ("carries", "i4", 3), ("unused", "i4"), ("weights", "f8", 3)])
CUDA_R_8I, CUDA_R_32I = 3, 10  # CuPy names only the first
ALPHA, BETA = np.ones(1, dtype=np.int32), np.zeros(1, dtype=np.int32)


def workspace(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return memory from torch's caching allocator, which hands out again what the last call has dropped.

    Memory kept by `name` would be shared by two streams.
    """
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def release_workspace() -> None:
    """Give back what torch's caching allocator holds and nobody uses."""
    torch.cuda.empty_cache()


def depth(k: int) -> int:
    """Return the least multiple of 16 that is at least k, and not 0."""
    return _padded(max(k, 1), DEPTH_MULTIPLE)


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def row_scales(x_RK: torch.Tensor) -> RowScales:
    """Measure each row (contiguous FP64)."""
    R, K = x_RK.shape
    exponent_R, span_R = x_RK.new_empty((2, R), dtype=torch.int64)
    energy_R, sum_R = x_RK.new_empty((2, R))
    finite_R = x_RK.new_empty(R, dtype=torch.bool)
    _launch("row_scales", (R,), ROW_THREADS, x_RK, K, exponent_R, energy_R, sum_R, span_R, finite_R)
    return RowScales(exponent_R, energy_R, sum_R, span_R, finite_R)


def split(x_RK: torch.Tensor, scales: RowScales, numbers: Sequence[int], bits: int, digits_RSK: torch.Tensor) -> None:
    """Write the signed digits of each row, int8."""
    (R, K), (_, S, D) = x_RK.shape, digits_RSK.shape
    rows, number_S = (scales.exponent_R, scales.finite_R), _integers(numbers, x_RK.device)
    _launch("split", _rows(R, D, NEIGHBOURS), THREADS, x_RK, K, D, *rows, number_S, S, bits, digits_RSK)


def residues(
    x_RK: torch.Tensor, shift_R: torch.Tensor, finite_R: torch.Tensor, constants: Moduli, out_LRK: torch.Tensor
) -> None:
    """Write trunc(2^shift x) mod p for each row and modulus, int8 in [-p / 2, p / 2]."""
    (R, K), (L, _, D) = x_RK.shape, out_LRK.shape
    modulus_L = _moduli(constants, x_RK.device)
    _launch("residues", _rows(R, D, NEIGHBOURS), THREADS, x_RK, R, K, D, shift_R, finite_R, modulus_L, L, out_LRK)


def multiply_int8(a_MK: torch.Tensor, b_NK: torch.Tensor, out_MN: torch.Tensor) -> None:
    """Write A B^T (int32) of int8 operands whose rows are multiples of 16 bytes apart.

    A number of columns that is no multiple of 4 costs a padded copy of B and one of the product.
    """
    N = len(b_NK)
    extra = _padded(N, COLUMN_MULTIPLE) - N
    if extra:
        padded_MN = out_MN.new_empty((len(a_MK), N + extra))
        _gemm(a_MK, torch.nn.functional.pad(b_NK, (0, 0, 0, extra)), padded_MN)
        out_MN.copy_(padded_MN[:, :N])
    else:
        _gemm(a_MK, b_NK, out_MN)


def _gemm(a_MK: torch.Tensor, b_NK: torch.Tensor, out_MN: torch.Tensor) -> None:
    """Write A B^T. cuBLAS stores by columns: what it is given are transposes, and it computes that of the product."""
    (M, K), N = a_MK.shape, len(b_NK)
    with _stream_of(a_MK, b_NK, out_MN) as cuda:
        cublas = cuda.cublas
        a = (a_MK.data_ptr(), CUDA_R_8I, a_MK.stride(0))
        b = (b_NK.data_ptr(), CUDA_R_8I, b_NK.stride(0))
        out = (out_MN.data_ptr(), CUDA_R_32I, out_MN.stride(0))
        how = (cuda.device.get_cublas_handle(), cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N)
        factors, kind = (ALPHA.ctypes.data, BETA.ctypes.data), (cublas.CUBLAS_COMPUTE_32I, cublas.CUBLAS_GEMM_DEFAULT)
        cublas.gemmEx(*how, N, M, K, factors[0], *b, *a, factors[1], *out, *kind)


def accumulate(
    products_PMN: torch.Tensor, diagonal_P: Sequence[int], bits: int, exponent_M: torch.Tensor, exponent_N: torch.Tensor
) -> torch.Tensor:
    """Return 2^(e_i + f_j) sum_t 2^(-b (t + 1)) D_t, D_t the sum of the products of diagonal t, by Horner's rule."""
    P, M, N = products_PMN.shape
    c_MN = products_PMN.new_empty((M, N), dtype=torch.float64)
    starts_P = _integers(np.diff(diagonal_P, prepend=0) != 0, products_PMN.device)
    _launch("accumulate", _rows(M, N), THREADS, products_PMN, starts_P, P, M, N, bits, exponent_M, exponent_N, c_MN)
    return c_MN


def reconstruct(
    products_PMN: torch.Tensor, constants: Moduli, exponent_M: torch.Tensor, exponent_N: torch.Tensor
) -> torch.Tensor:
    """Return 2^(e_i + f_j) x, x the integer of least magnitude with the residues of the products (int32)."""
    (P, M, N), L = products_PMN.shape, len(constants.moduli_L)
    c_MN = products_PMN.new_empty((M, N), dtype=torch.float64)
    modulus_L, product = _moduli(constants, products_PMN.device), (*constants.product_3, constants.inverse_product)
    operands = (products_PMN, modulus_L, L, P // L, M, N, *product, exponent_M, exponent_N, c_MN)
    _launch("reconstruct", _rows(M, N), THREADS, *operands)
    return c_MN


def propagate(
    c_MN: torch.Tensor, a_MK: torch.Tensor, b_NK: torch.Tensor, finite_M: torch.Tensor, finite_N: torch.Tensor
) -> None:
    """Write what IEEE arithmetic makes of the entries that an infinity or a NaN reaches, in place.

    Each block of the kernel finds out whether there are any among its own: the host need not know.
    """
    (M, K), N = a_MK.shape, len(b_NK)
    tiles = -(-M // TILE) * -(-N // TILE)
    _launch("propagate", (tiles,), THREADS, c_MN, a_MK, b_NK, finite_M, finite_N, M, N, K)


def worst_ratio(
    lower_MN: torch.Tensor, x_M: torch.Tensor, y_M: torch.Tensor, x_N: torch.Tensor, y_N: torch.Tensor
) -> tuple[float, float]:
    """Return the greatest (x_i y_j + y_i x_j) / lower_ij, and the least lower_ij, where x_i y_j + y_i x_j > 0."""
    M, N = lower_MN.shape
    worst_M, least_M = lower_MN.new_empty((2, M))
    _launch("worst_ratio", (M,), ROW_THREADS, lower_MN, x_M, y_M, x_N, y_N, N, worst_M, least_M)
    return float(worst_M.max()), float(least_M.min())


def _rows(rows: int, columns: int, each: int = 1) -> tuple[int, int]:
    """Return the blocks for `each` columns of a row a thread; the first dimension of a grid may be the longer."""
    return rows, -(-columns // (each * THREADS))


def _launch(name: str, grid: tuple[int, ...], threads: int, *arguments: torch.Tensor | float) -> None:
    tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
    if strided := [tuple(tensor.shape) for tensor in tensors if not tensor.is_contiguous()]:
        raise ValueError(f"{name}: tensors of shapes {strided} are strided; pass them .contiguous().")
    if 0 in grid:
        return
    with _stream_of(*tensors):
        values = [argument.data_ptr() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        _kernel(name)(grid, (threads,), tuple(values))


@contextmanager
def _stream_of(*tensors: torch.Tensor) -> Iterator[Any]:
    """Make the tensors' device, and torch's stream on it, the current ones of cupy.cuda, and return it."""
    device, *others = {tensor.device for tensor in tensors}
    if others:
        raise ValueError(f"tensors on {device} and {others[0]}: work under torch.cuda.device_of(operand).")
    cuda = _cupy().cuda
    with cuda.Device(tensors[0].get_device()), cuda.Stream.from_external(torch.cuda.current_stream(device)):
        yield cuda


@cache
def _kernel(name: str) -> Any:
    return _module().get_function(name)


@cache
def _module() -> Any:
    return _cupy().RawModule(code=SOURCE.read_text(), options=compiler_options())


def compiler_options() -> tuple[str, ...]:
    """Return what NVRTC is told, but for the architecture."""
    return "-std=c++17", "--fmad=false", f"-DTHREADS={THREADS}", f"-DROW_THREADS={ROW_THREADS}"


@cache
def _cupy() -> Any:
    try:
        import cupy
    except ImportError as missing:
        raise ImportError("kinji.gemm on a GPU needs CuPy 14 for CUDA 13: pip install 'kinji[gpu]'.") from missing
    return cupy


def _moduli(constants: Moduli, device: torch.device) -> torch.Tensor:
    """Return the table of moduli that the kernels read."""
    p_L = constants.moduli_L.astype(np.int64)
    powers_L3 = np.broadcast_to(1 << CHUNK_BITS * np.arange(1, 4), (len(p_L), 3))
    table_L = np.zeros(_padded(len(p_L), GROUP), MODULUS)
    known_L = table_L[: len(p_L)]
    known_L["p"] = p_L
    known_L["reciprocal"] = np.rint(2.0**RECIPROCAL_BITS / p_L)
    known_L["carries"] = _symmetric(powers_L3, p_L[:, None])
    known_L["weights"] = constants.weights_3L.T
    return _on_device(table_L.tobytes(), device)


def _symmetric(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    return (x + p // 2) % p - p // 2


def _integers(values: Sequence[int] | np.ndarray, device: torch.device) -> torch.Tensor:
    return _on_device(np.array(values, dtype=np.int64).tobytes(), device)


@cache
def _on_device(content: bytes, device: torch.device) -> torch.Tensor:
    return torch.tensor(np.frombuffer(content, dtype=np.uint8), device=device)
