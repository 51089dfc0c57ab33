"""FP64 products on the INT8 unit: accuracy, time and bits of Ozaki scheme I beside native DGEMM.

Four kinds of rows, told apart by `quantity`:

``accuracy``
    max |C' - C| / (|A| |B|) over sampled entries, in units of 2^-53, with its rigorous bound, the digest of C' and the
    level that native DGEMM reaches on the same operands.
``time``
    One raw repetition of each side, interleaved: native DGEMM, one INT8 product, scheme I for each number of slices.
``identity``
    Digests of C' under changes that leave exact arithmetic alone, for scheme I and native DGEMM.
``automatic_rule``
    What the published rule for the number of slices takes on operands whose product hangs on a few small entries.

Operands are (U - 1/2) exp(phi N(0, 1)), as in Ootomo, Ozaki and Yokota, IJHPCA 38(4), 2024, section 4: phi sets the
spread of the exponents. Products are n x n x n where time is the question. Elsewhere rows of A and columns of B are a
part of theirs: an entry depends on one of each and on the inner dimension n. On CUDA, native DGEMM is cuBLAS's alone;
not yet run on a GPU.

Dimension letters: M rows of A, K inner dimension, N columns of B.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numba
import numpy as np
import threadpoolctl
import torch

from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context
from kinji.gemm import Reference, published_slice_count, sample_reference, scheme_one, truncation_bound
from kinji.gemm.products import exact_bits, multiply_int8
from kinji.gemm.reference import UNIT_ROUNDOFF
from kinji.gemm.splitting import bits_per_slice

Observation: TypeAlias = dict[str, int | float | str | bool]
Multiply: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SAMPLES = 400
DGEMM_SLICES = 9  # as accurate as DGEMM for moderate spreads; what the bits and the ungrouped form are judged at
NARROW = 384  # rows of A and columns of B, at most, where accuracy and bits are the question
TIMED_PHI = 0.5  # no side's time depends on the values it multiplies
MEAN_LOST_BITS = (0.0, 1.0, 1.5)  # thresholds of the published rule: its default, and the example of its manual
SETTLE_SECONDS = 0.2  # idle threads of OpenBLAS spin for a tenth of a second, on cores that the next side wants
SHORT = 1024  # up to it a call is short beside the waking of threads; (SHORT / n)^2 calls are timed at once
CARRIERS = 24 / 1024  # part of the inner dimension that carries the product of `hidden_small`


@dataclass(frozen=True)
class Side:
    """One way to multiply, and how many calls make one timing of it."""

    method: str
    slices: int
    multiply: Multiply
    calls: int = 1


def measure(case: Int8DgemmCase, context: Context) -> Iterator[Observation]:
    """Yield the observations of one n: accuracy for each phi, then time, bits and the automatic rule."""
    device = torch.device(context.device)
    bits = bits_per_slice(case.n, exact_bits(device))
    parts = (_compare_accuracy, _compare_time, _compare_bits, _try_automatic_rule)
    for part in parts:
        for observation in part(case, context, device):
            yield {**observation, "bits": bits}


def exponential_operands(
    m: int, k: int, phi: float, seed: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (m x k) and B (k x m) of entries (U - 1/2) exp(phi N(0, 1)), U uniform on [0, 1)."""
    rng = np.random.default_rng([seed, k, round(1000 * phi)])
    a, b = ((rng.random(shape) - 0.5) * np.exp(phi * rng.standard_normal(shape)) for shape in ((m, k), (k, m)))
    return torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)


def hidden_small_operands(m: int, k: int, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return operands whose product hangs on a few columns of A, 2^60 smaller than those that meet zeros in B."""
    rng = np.random.default_rng([seed, k])
    a, b = rng.uniform(1, 2, (m, k)), rng.uniform(1, 2, (k, m))
    carriers = max(1, round(CARRIERS * k))
    a[:, :carriers] *= 2.0**-60
    b[carriers:] = 0
    return torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)


def native_sides(device: torch.device) -> list[Side]:
    """Return native DGEMM as torch calls it and, on the CPU, as NumPy does: two BLAS libraries."""
    sides = [Side("torch", 0, torch.matmul, calls=2)]
    if device.type == "cpu":
        sides.append(Side("numpy", 0, lambda a, b: torch.from_numpy(a.numpy() @ b.numpy()), calls=2))
    return sides


def blas_kernel(method: str) -> str:
    """Name the BLAS behind a native side, since its kernel decides what "slower than native" means."""
    if method == "numpy":
        kernels = {pool["architecture"] for pool in threadpoolctl.threadpool_info() if "architecture" in pool}
        return " ".join(sorted(kernels)) or "unknown"
    version = re.search(r"Math Kernel Library Version ([\d.]+)", torch.__config__.show())
    return f"MKL {version[1]}" if version else "unknown"


def _products(case: Int8DgemmCase, device: torch.device) -> list[Side]:
    ours = [_scheme_one_side(slices) for slices in case.slices]
    return [*native_sides(device), *ours, _scheme_one_side(DGEMM_SLICES, grouped=False)]


def _scheme_one_side(slices: int, grouped: bool = True) -> Side:
    method = "scheme_one" if grouped else "scheme_one_ungrouped"
    return Side(method, slices, lambda a, b: scheme_one(a, b, slices=slices, grouped=grouped))


def _compare_accuracy(case: Int8DgemmCase, context: Context, device: torch.device) -> Iterator[Observation]:
    for phi in context.progress.track(case.phi, "accuracy"):
        a, b = exponential_operands(min(case.n, NARROW), case.n, phi, case.seed, device)
        reference = sample_reference(a.numpy(force=True), b.numpy(force=True), samples=SAMPLES, seed=case.seed)
        for side in _products(case, device):
            about: Observation = {"phi": phi, "method": side.method, "slices": side.slices}
            yield {"quantity": "accuracy", **about, **_accuracy(side, a, b, reference)}


def _accuracy(side: Side, a: torch.Tensor, b: torch.Tensor, reference: Reference) -> Observation:
    product = side.multiply(a, b)
    error = reference.error_in_roundoffs(product.numpy(force=True))
    observed: Observation = {"error_roundoffs": error, "digest": digest(product)}
    if side.slices == 0:
        return {**observed, "blas_kernel": blas_kernel(side.method)}
    truncation = truncation_bound(a, b, slices=side.slices)[reference.rows_P, reference.columns_P]
    bound = float(np.max(truncation / reference.magnitude_P)) / UNIT_ROUNDOFF + side.slices
    return {**observed, "bound_roundoffs": bound}


def _compare_time(case: Int8DgemmCase, context: Context, device: torch.device) -> Iterator[Observation]:
    a, b = exponential_operands(case.n, case.n, TIMED_PHI, case.seed, device)
    sides = [Side("int8_product", 0, _int8_product(case.n, device), calls=8), *_products(case, device)]
    sides[-1].multiply(a, b)  # compiles, and wakes the threads
    rounds = [(repetition, side) for repetition in range(case.repetitions) for side in sides]
    before = sides[-1].method
    for repetition, side in context.progress.track(rounds, "timing"):
        if side.method != before:
            _hand_over(side, a, b)
        before = side.method
        about: Observation = {"method": side.method, "slices": side.slices, "repetition": repetition}
        yield {"quantity": "time", **about, "call_seconds": _call_seconds(side, a, b)}


def _int8_product(n: int, device: torch.device) -> Multiply:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-63, 64, (n, n), dtype=torch.int8, generator=generator).to(device) for _ in range(2))
    return lambda *_: multiply_int8(a, b)


def _hand_over(side: Side, a: torch.Tensor, b: torch.Tensor) -> None:
    """Let the threads of the library before fall asleep and, where calls are short, those of this side wake."""
    time.sleep(SETTLE_SECONDS)
    if a.shape[1] <= SHORT:
        side.multiply(a, b)


def _call_seconds(side: Side, a: torch.Tensor, b: torch.Tensor) -> float:
    calls = side.calls * max(1, SHORT // a.shape[1]) ** 2
    _synchronize(a.device)
    start = time.perf_counter()
    for _ in range(calls):
        side.multiply(a, b)
    _synchronize(a.device)
    return (time.perf_counter() - start) / calls


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def digest(product: torch.Tensor) -> str:
    """Return 16 hexadecimal digits that two products share only if they are the same to the bit."""
    return hashlib.sha256(product.contiguous().numpy(force=True).tobytes()).hexdigest()[:16]


def _compare_bits(case: Int8DgemmCase, context: Context, device: torch.device) -> Iterator[Observation]:
    a, b = exponential_operands(min(case.n, NARROW), case.n, 1.0, case.seed, device)
    sides = [_scheme_one_side(DGEMM_SLICES), _scheme_one_side(DGEMM_SLICES - 1), *native_sides(device)]
    for side in context.progress.track(sides, "bits"):
        for variation, product in _variations(side.multiply, a, b, context.threads):
            about: Observation = {"method": side.method, "slices": side.slices, "variation": variation}
            yield {"quantity": "identity", **about, "digest": digest(product)}


def _variations(
    multiply: Multiply, a: torch.Tensor, b: torch.Tensor, threads: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield A B by ways that would agree to the bit if no addition rounded."""
    order = torch.randperm(a.shape[1], generator=torch.Generator().manual_seed(0)).to(a.device)
    yield "reference", multiply(a, b)
    with _limited_to(1, threads):
        yield "one thread", multiply(a, b)
    yield "row blocks", torch.vstack([multiply(block, b) for block in a.chunk(5)])
    yield "column blocks", torch.hstack([multiply(a, block.contiguous()) for block in b.chunk(3, dim=1)])
    yield "summation order", multiply(a[:, order], b[order])
    yield "transposed", multiply(b.T.contiguous(), a.T.contiguous()).T
    yield "scaled by powers of two", multiply(a * 2.0**20, b * 2.0**-33) * 2.0**13
    more_a, more_b = torch.nn.functional.pad(a, (0, 13, 0, 7)), torch.nn.functional.pad(b, (0, 7, 0, 13))
    yield "padded", multiply(more_a, more_b)[: a.shape[0], : b.shape[1]]


@contextmanager
def _limited_to(count: int, threads: int) -> Iterator[None]:
    try:
        numba.set_num_threads(count)
        torch.set_num_threads(count)
        with threadpoolctl.threadpool_limits(count):
            yield
    finally:
        numba.set_num_threads(threads)
        torch.set_num_threads(threads)


def _try_automatic_rule(case: Int8DgemmCase, context: Context, device: torch.device) -> Iterator[Observation]:
    a, b = hidden_small_operands(min(case.n, NARROW), case.n, case.seed, device)
    reference = sample_reference(a.numpy(force=True), b.numpy(force=True), samples=SAMPLES, seed=case.seed)
    for mean_lost_bits in context.progress.track(MEAN_LOST_BITS, "automatic rule"):
        slices = published_slice_count(a, b, mean_lost_bits=mean_lost_bits) or 0
        product = scheme_one(a, b, slices=slices) if slices else a @ b
        error = reference.relative_error(product.numpy(force=True))
        observed: Observation = {"slices": slices, "relative_error": error}
        if slices:
            bound = truncation_bound(a, b, slices=slices)[reference.rows_P, reference.columns_P]
            observed["bound_relative"] = float(np.min(bound / np.abs(reference.head_P)))
        yield {"quantity": "automatic_rule", "input": "hidden_small", "mean_lost_bits": mean_lost_bits, **observed}
