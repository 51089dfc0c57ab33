"""Energy of one product on a GPU, from its counter, in runs of their own, never while timing.

The counter (NVML, millijoules) moves every 20 to 100 ms, so each side runs for seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from kinji.errors import KinjiError
from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context
from kinji.experiments.int8_dgemm.operands import exponential
from kinji.experiments.int8_dgemm.sides import Observation, Side
from kinji.experiments.int8_dgemm.timing import PHI, synchronize, timed_sides


def measure_energy(case: Int8DgemmCase, context: Context, device: torch.device) -> Iterator[Observation]:
    """Yield joules, seconds and calls of each side run for `energy_seconds`; nothing if these are 0."""
    if case.energy_seconds == 0:
        return
    if device.type != "cuda":
        raise KinjiError("--energy-seconds needs a GPU's energy counter: pass --device cuda, or leave it at 0.")
    a, b = exponential(case.n, case.n, PHI, case.seed, device)
    for side in context.progress.track(timed_sides(case, device), "energy"):
        side.multiply(a, b)
        observed = _run_for(case.energy_seconds, side, a, b)
        yield {"quantity": "energy", "method": side.method, "count": side.count, **observed}


def _run_for(seconds: float, side: Side, a: torch.Tensor, b: torch.Tensor) -> Observation:
    calls, meter = 0, _Meter(a.device)
    synchronize(a.device)
    start, before = time.perf_counter(), meter.joules()
    while time.perf_counter() - start < seconds:
        side.multiply(a, b)
        synchronize(a.device)
        calls += 1
    joules, elapsed = meter.joules() - before, time.perf_counter() - start
    return {"call_joules": joules / calls, "call_seconds": elapsed / calls}


class _Meter:
    """The energy counter of one GPU."""

    def __init__(self, device: torch.device) -> None:
        import pynvml

        pynvml.nvmlInit()
        identifier = torch.cuda.get_device_properties(device).uuid
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identifier}")
        self._read = pynvml.nvmlDeviceGetTotalEnergyConsumption

    def joules(self) -> float:
        """Return the energy used since the driver was loaded."""
        return self._read(self._handle) / 1000
