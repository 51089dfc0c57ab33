import sys
from types import SimpleNamespace

import pytest
import torch

from kinji.records.energy import gpu_joules, joules_since
from kinji.records.provenance import describe_job


class NVMLError(Exception):
    pass


@pytest.fixture
def counters(monkeypatch):
    """Two GPUs by UUID and their counters in millijoules."""
    counted = {"GPU-a": 1500, "GPU-b": 2500}
    pynvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: counted[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: SimpleNamespace(uuid="ab"[k]))
    return counted


def test_the_joules_of_all_visible_gpus_since_the_start(counters):
    before = gpu_joules("cuda")
    assert before == 4.0
    counters["GPU-a"] += 250
    counters["GPU-b"] += 500
    assert joules_since(before, "cuda") == {"gpu_joules": 0.75}


def test_without_a_counter_the_record_says_nothing(counters, monkeypatch):
    assert gpu_joules("cpu") is None and joules_since(None, "cpu") == {}

    def refuse():
        raise NVMLError

    monkeypatch.setattr(sys.modules["pynvml"], "nvmlInit", refuse)
    assert gpu_joules("cuda") is None and joules_since(4.0, "cuda") == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_joules("cuda") is None


def test_a_job_of_slurm_names_its_node(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert describe_job() == {}
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "n3")
    assert describe_job() == {"slurm_job": "7", "slurm_node": "n3", "visible_gpus": "1"}
