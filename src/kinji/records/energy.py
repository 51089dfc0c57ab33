"""Energy that the GPUs of this process used, from their own counters (NVML); the CPU's is not metered."""

from __future__ import annotations


def gpu_joules(device: str) -> float | None:
    """Return the joules counted so far by the GPUs this process sees; None without a GPU, its counter or pynvml."""
    if device != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    import torch

    try:
        pynvml.nvmlInit()
        uuids = [torch.cuda.get_device_properties(k).uuid for k in range(torch.cuda.device_count())]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1000 or None
    except (RuntimeError, pynvml.NVMLError):
        return None


def joules_since(before: float | None, device: str) -> dict[str, float]:
    """Return what was used since `before`, as a field of the provenance; empty if nobody counted."""
    after = gpu_joules(device)
    return {} if before is None or after is None else {"gpu_joules": after - before}
