"""Energy that the GPUs of this process used, from their own counters (NVML); the CPU's is not metered."""

from __future__ import annotations


def gpu_joules(device: str, ranks: int = 1) -> float | None:
    """Return the joules counted so far; None without a GPU, its counter or pynvml.

    They are those of all GPUs that this process sees, or of its current one where it is one of several ranks.
    """
    if device != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    import torch

    try:
        pynvml.nvmlInit()
        used = range(torch.cuda.device_count()) if ranks == 1 else [torch.cuda.current_device()]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(k).uuid}") for k in used]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1000 or None
    except (RuntimeError, pynvml.NVMLError):
        return None


def joules_since(before: float | None, device: str, ranks: int = 1) -> dict[str, float]:
    """Return what was used since `before`, as a field of the provenance; empty if nobody counted."""
    after = gpu_joules(device, ranks)
    return {} if before is None or after is None else {"gpu_joules": after - before}
