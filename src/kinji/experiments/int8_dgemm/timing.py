"""Seconds of each way to multiply, one raw repetition of each side after the other, interleaved."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context
from kinji.experiments.int8_dgemm.operands import exponential
from kinji.experiments.int8_dgemm.sides import Multiply, Observation, Side, moduli_side, native_sides, slices_side
from kinji.gemm import matmul
from kinji.gemm.backend import kernels

PHI = 0.5  # no side's time depends on the values it multiplies, but matmul's on the count it picks
SETTLE_SECONDS = 0.2  # idle threads of OpenBLAS spin for a tenth of a second, on cores that the next side wants
SHORT = 1024  # up to it a call is short beside the waking of threads; (SHORT / n)^2 calls are timed at once


def compare_time(case: Int8DgemmCase, context: Context, device: torch.device) -> Iterator[Observation]:
    """Yield each repetition of each side at n x n x n."""
    if case.repetitions == 0:
        return
    a, b = exponential(case.n, case.n, PHI, case.seed, device)
    sides = timed_sides(case, device)
    for side in sides:  # compiles, and takes the workspace
        side.multiply(a, b)
    rounds = [(repetition, side) for repetition in range(case.repetitions) for side in sides]
    before = sides[-1].method
    for repetition, side in context.progress.track(rounds, "timing"):
        if side.method != before:
            _hand_over(side, a, b)
        before = side.method
        about: Observation = {"method": side.method, "count": side.count, "repetition": repetition}
        yield {"quantity": "time", **about, "call_seconds": call_seconds(side.multiply, a, b)}


def timed_sides(case: Int8DgemmCase, device: torch.device) -> list[Side]:
    """Return native DGEMM, one INT8 product, both schemes with the case's counts, and `matmul` to DGEMM's bound."""
    schemes = [*map(slices_side, case.timed_slices), *map(moduli_side, case.timed_moduli)]
    guaranteed = Side("matmul", 0, lambda a, b: matmul(a, b).value)
    return [*native_sides(device), Side("int8_product", 0, int8_product(case.n, device)), *schemes, guaranteed]


def int8_product(n: int, device: torch.device) -> Multiply:
    """Return a call of one INT8 product of two n x n matrices, whatever operands it gets."""
    generator, on = torch.Generator().manual_seed(0), kernels(device)
    a, b = (torch.randint(-127, 128, (n, n), dtype=torch.int8, generator=generator).to(device) for _ in range(2))
    product = torch.empty((n, n), dtype=torch.int32, device=device)

    def multiply(*_: torch.Tensor) -> torch.Tensor:
        on.multiply_int8(a, b, product)
        return product

    return multiply


def _hand_over(side: Side, a: torch.Tensor, b: torch.Tensor) -> None:
    """Let the CPU's threads of the library before fall asleep and, where calls are short, those of this side wake."""
    if a.device.type == "cpu":
        time.sleep(SETTLE_SECONDS)
    if a.shape[1] <= SHORT:
        side.multiply(a, b)


def call_seconds(multiply: Multiply, a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the seconds of one call, the mean of enough calls to see past the clock and the threads."""
    calls = max(1, SHORT // a.shape[1]) ** 2
    synchronize(a.device)
    start = time.perf_counter()
    for _ in range(calls):
        multiply(a, b)
    synchronize(a.device)
    return (time.perf_counter() - start) / calls


def synchronize(device: torch.device) -> None:
    """Wait for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
