"""Side by side: FP64 products on the INT8 unit and native ones, and what the count of INT8 products explains.

``python benchmarks/gemm.py [--json FILE] [--device cpu] [--sizes 256 2048] [--threads 1 2] [--moduli 14 15]``

All sides run interleaved. R is the rate of one INT8 product over native DGEMM's, both of this run; native is NumPy's
OpenBLAS with the fastest of its kernels for this processor (it does not always choose that one itself).
`over count` is a scheme's time over that of its INT8 products alone, N / R or S(S+1) / (2 R) of native time; `inside`
is the part of its time spent in them.

On a GPU native DGEMM is cuBLAS's; its own FP64 emulation (55 bits) stands beside, from a process of its own, since its
switches are read when cuBLAS starts; that it was active shows in bits other than native's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from kinji.experiments.int8_dgemm.sides import blas_kernel, digest
from kinji.experiments.int8_dgemm.threads import limited_to
from kinji.experiments.int8_dgemm.timing import SETTLE_SECONDS, SHORT, int8_product, synchronize
from kinji.gemm import cpu, matmul, scheme_one, scheme_two

Call = Callable[[], object]
CUBLAS_EMULATION = {
    "CUBLAS_EMULATE_DOUBLE_PRECISION": "1",
    "CUBLAS_EMULATION_STRATEGY": "eager",
    "CUBLAS_FIXEDPOINT_EMULATION_MANTISSA_BIT_COUNT": "55",
}
EMULATED = "DGEMM, cuBLAS's emulation"
OPENBLAS_KERNELS = {"x86_64": ("Haswell", "Zen", "SkylakeX"), "aarch64": ("ARMV8", "NEOVERSEN1", "NEOVERSEV1")}
ONE_DGEMM = """
import numpy, time
a = numpy.random.default_rng(0).standard_normal((1024, 1024))
a @ a
start = time.perf_counter()
for _ in range(5):
    a @ a
print(time.perf_counter() - start)
"""


def operands(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two n x n matrices of normally distributed numbers."""
    a, b = np.random.default_rng(0).standard_normal((2, n, n))
    return torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)


def sides(n: int, device: torch.device, slices: list[int], moduli: list[int]) -> dict[str, tuple[int, Call]]:
    """Return what is timed for n x n operands by name, with the INT8 products each takes."""
    x, y = operands(n, device)
    one_product = int8_product(n, device)
    numpy = {f"DGEMM, numpy ({blas_kernel('numpy', device)})": (0, lambda: x.numpy() @ y.numpy())}
    return {
        **(numpy if device.type == "cpu" else {}),
        f"DGEMM, torch ({blas_kernel('torch', device)})": (0, lambda: x @ y),
        "one INT8 product": (1, lambda: one_product(x, y)),
        **{f"scheme II, {N} moduli": (N, lambda N=N: scheme_two(x, y, moduli=N)) for N in moduli},
        **{f"scheme I, {S} slices": (S * (S + 1) // 2, lambda S=S: scheme_one(x, y, slices=S)) for S in slices},
        "matmul(error='dgemm')": (0, lambda: matmul(x, y)),
    }


def measure(
    calls: dict[str, tuple[int, Call]], n: int, threads: list[int], repetitions: int, device: torch.device
) -> dict[tuple[str, int], list[float]]:
    """Return the seconds of each repetition of each side and number of threads, interleaved, after one call of each."""
    seconds: dict[tuple[str, int], list[float]] = {(name, count): [] for count in threads for name in calls}
    rounds = [(r, count, name) for r in range(-1, repetitions) for count in threads for name in calls]
    for repetition, count, name in track(rounds, f"n = {n}", transient=True):
        with limited_to(count):
            if device.type == "cpu":
                time.sleep(SETTLE_SECONDS)  # threads of the library before spin for a while
            elapsed = seconds_of(calls[name][1], max(1, SHORT // n) ** 2, device)
        if repetition >= 0:
            seconds[name, count].append(elapsed)
    return seconds


def seconds_of(call: Call, calls: int, device: torch.device) -> float:
    """Return the mean seconds of `calls` calls, after one that wakes the threads if they are short."""
    if calls > 1:
        call()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def restart_with_fastest_openblas() -> None:
    """Start this benchmark again with the kernel that OpenBLAS, which reads its name when loaded, is to use."""
    seconds = {kernel: openblas_seconds(kernel) for kernel in OPENBLAS_KERNELS.get(platform.machine(), ())}
    chosen = {"OPENBLAS_CORETYPE": min(seconds, key=lambda kernel: seconds[kernel])} if seconds else {}
    command = [sys.executable, *sys.argv, "--openblas-as-it-is"]
    os.execve(sys.executable, command, {**os.environ, **chosen})


def openblas_seconds(kernel: str) -> float:
    """Return the seconds of a few products by this kernel; infinite if the processor cannot run it."""
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", ONE_DGEMM], env=environment, capture_output=True, text=True)
    return float(run.stdout) if run.returncode == 0 else math.inf


def emulated_by_cublas(n: int, repetitions: int) -> list[float]:
    """Return the seconds of each repetition of cuBLAS's emulation; raise RuntimeError if it was not active."""
    command = [sys.executable, __file__, "--emulated", str(n), "--repetitions", str(repetitions)]
    run = subprocess.run(command, env={**os.environ, **CUBLAS_EMULATION}, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    x, y = operands(n, torch.device("cuda"))
    if found["digest"] == digest(x @ y):
        raise RuntimeError("cuBLAS's FP64 emulation was not active: its product has the bits of native DGEMM.")
    return found["seconds"]


def time_emulated(n: int, repetitions: int) -> None:
    """Print the seconds of DGEMM in this process, whose environment asks for emulation, and what identifies it."""
    device = torch.device("cuda")
    x, y = operands(n, device)
    product = x @ y
    seconds = [seconds_of(lambda: x @ y, max(1, SHORT // n) ** 2, device) for _ in range(repetitions)]
    print(json.dumps({"seconds": seconds, "digest": digest(product)}))


def share_inside(call: Call, threads: int) -> float:
    """Return the part of a call's time that its INT8 products take, on the CPU."""
    inside, multiply = [], cpu.multiply_int8

    def timed(*operands: torch.Tensor) -> None:
        start = time.perf_counter()
        multiply(*operands)
        inside.append(time.perf_counter() - start)

    cpu.multiply_int8 = timed
    try:
        with limited_to(threads):
            call()
            inside.clear()
            start = time.perf_counter()
            call()
            return sum(inside) / (time.perf_counter() - start)
    finally:
        cpu.multiply_int8 = multiply


def report(
    n: int,
    calls: dict[str, tuple[int, Call]],
    seconds: dict[tuple[str, int], list[float]],
    threads: list[int],
    device: torch.device,
) -> list[dict]:
    """Print a table for people; return what machines want."""
    rows = []
    for count in threads:
        median = {name: statistics.median(seconds[name, count]) for name in calls}
        native, product = next(iter(median.values())), median["one INT8 product"]
        print(f"\nn = {n}, {count} thread(s), R = {native / product:.2f}")
        print(f"{'':<40}{'seconds':>10}{'over DGEMM':>12}{'over count':>12}{'inside':>8}{'1 thread':>10}")
        for name, (products, call) in calls.items():
            over = f"{median[name] / (products * product):>12.2f}" if products > 1 else f"{'':>12}"
            shown = products > 1 and device.type == "cpu"
            inside = f"{share_inside(call, count):>8.2f}" if shown else f"{'':>8}"
            gain = statistics.median(seconds[name, threads[0]]) / median[name]
            print(f"{name:<40}{median[name]:>10.4f}{median[name] / native:>12.2f}{over}{inside}{gain:>9.2f}x")
            label = f"{name}, n = {n}, {count} threads"
            rows.append({"name": label, "value": median[name], "unit": "s", "repetitions": seconds[name, count]})
    return rows


def main() -> None:
    """Time the sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name, value, unit, repetitions} for each side here")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 2048, 4096])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--slices", type=int, nargs="+", default=[8, 9])
    parser.add_argument("--moduli", type=int, nargs="+", default=[13, 14, 15])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--openblas-as-it-is", action="store_true", help="do not look for OpenBLAS's fastest kernel")
    parser.add_argument("--emulated", type=int, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.emulated:
        time_emulated(options.emulated, options.repetitions)
        return
    if not options.openblas_as_it_is:
        restart_with_fastest_openblas()
    rows: list[dict] = []
    device = torch.device(options.device)
    for n in options.sizes:
        calls = sides(n, device, options.slices, options.moduli)
        seconds = measure(calls, n, options.threads, options.repetitions, device)
        if device.type == "cuda":
            calls[EMULATED] = (0, lambda: None)
            seconds |= {(EMULATED, count): emulated_by_cublas(n, options.repetitions) for count in options.threads}
        rows += report(n, calls, seconds, options.threads, device)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
