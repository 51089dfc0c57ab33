"""What each rank of the multi-rank tests does, under gloo and under MPI: all of it in one launch of eight processes."""

import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinji.kfac import KFAC, Communicator, MPICommunicator, TorchCommunicator
from kinji.kfac.communicator import Exchange, Parcel
from kinji.training.batch_norm import synchronize_batch_norm

from ..training import distributed as training
from .transformer import learn

SIZES = (1, 2, 4, 8)
STEPS, BATCH = 20, 16
EVERY = {"momentum": 0.9, "damping": 1e-2, "weight_decay": 1e-2, "rescale_weights": "published"}
STALENESS: tuple[dict[str, Any], ...] = (
    {},
    {"statistics_interval": 3, "inverse_interval": 2},
    {"statistics_interval": "adaptive", "similarity": 0.5, "statistics_decay": 0.0},
)
SHARING = [{"pack": pack, "ownership": ownership} for pack in (True, False) for ownership in ("balanced", "contiguous")]
VARIANTS: tuple[dict[str, Any], ...] = (
    *(staleness | sharing for staleness, sharing in product(STALENESS, SHARING)),
    *(staleness | sharing | {"synchronized": True} for staleness, sharing in product(STALENESS, SHARING)),
    {"statistics_interval": 2, "inverse": "eigen", "normalization": "full", "synchronized": True},
    {"statistics_interval": 3, "fisher": "exact", "normalization": "diagonal"},
    {"accumulation_steps": 2, "momentum_rule": "released", "synchronized": True},
)


def network() -> nn.Sequential:
    """Every kind of block."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, groups=2, bias=False)]
    return nn.Sequential(*layers, nn.PReLU(), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3)).double()


def train(
    communicator: Communicator | None, *, synchronized: bool = False, steps: int = STEPS, **options: Any
) -> list[Tensor]:
    """Return all weights and running statistics; batch normalization is frozen or synchronized."""
    model = network()
    model[1].train(synchronized)
    rank, size = (communicator.rank, communicator.size) if communicator else (0, 1)
    if communicator:
        synchronize_batch_norm(model, communicator)
    optimizer = KFAC(model, lr=0.02, communicator=communicator, **EVERY, **options)
    generator = torch.Generator().manual_seed(11)
    for _ in range(steps):
        x = torch.randn(BATCH, 1, 6, 6, dtype=torch.float64, generator=generator)
        target = torch.arange(BATCH) % 3
        optimizer.zero_grad()
        passes = optimizer.accumulation_steps
        for part in (torch.arange(BATCH)[k::passes][rank::size] for k in range(passes)):
            output = model(x[part])
            optimizer.form_statistics(output)
            (functional.cross_entropy(output, target[part]) / passes).backward()
        optimizer.step()
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]


def exchange_uneven_shares(communicator: Communicator) -> tuple[Tensor, list[list[Tensor]], dict[str, int]]:
    """Ranks 0, 1 and 2 own three, no and one tensor, all others none; every value names its sender."""
    tensors = [[torch.full((2, 3), 1.0), torch.full((), 2.0), torch.full((4,), 3.0)], [], [torch.full((5,), 4.0)]]
    owned = (tensors + [[] for _ in range(communicator.size)])[: communicator.size]
    sent = [[tensor * 10**communicator.rank for tensor in of_rank] for of_rank in owned]
    exchange = Exchange(communicator, like=torch.empty(0))
    before = dict(communicator.carried_bytes)
    averaged = exchange.start_average(Parcel(sent), "statistics", "test")().clone()
    gathered = [[t.clone() for t in of_rank] for of_rank in exchange.gather_from_owners(sent, "weights")]
    carried = {key: communicator.carried_bytes[key] - before.get(key, 0) for key in ("statistics", "weights")}
    return averaged, gathered, carried


def carried_bytes(communicator: Communicator, **options: Any) -> dict[str, int]:
    communicator.carried_bytes.clear()
    model = network().float()
    optimizer = KFAC(model, lr=0.1, communicator=communicator, **options)
    functional.cross_entropy(model(torch.randn(6, 1, 6, 6)), torch.arange(6) % 3).backward()
    optimizer.step()
    return dict(communicator.carried_bytes)


def one_step(communicator: Communicator) -> tuple[nn.Sequential, KFAC, list[Tensor]]:
    model = network()
    optimizer = KFAC(model, lr=0.1, communicator=communicator)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    functional.cross_entropy(model(torch.randn(6, 1, 6, 6, dtype=torch.float64)), torch.arange(6) % 3).backward()
    return model, optimizer, before


def step_with_a_poisoned_gradient(communicator: Communicator) -> tuple[str, bool]:
    """Rank 1 has a gradient that is not finite."""
    model, optimizer, before = one_step(communicator)
    if communicator.rank == 1:
        model[0].weight.grad[0] = torch.nan
    return failure(optimizer), all(map(torch.equal, before, model.parameters()))


def step_with_a_failing_owner(communicator: Communicator) -> tuple[str, bool]:
    """The owner of the last layer runs out of memory, say, in stage 3."""
    model, optimizer, before = one_step(communicator)
    optimizer.blocks[-1].invert = lambda *_: (_ for _ in ()).throw(MemoryError("no memory for the inverse"))
    return failure(optimizer), all(map(torch.equal, before, model.parameters()))


def step_with_a_layer_that_has_no_inverse(communicator: Communicator) -> bool:
    """One owner meets a factor without an inverse and goes on with the first-order rule."""
    model, optimizer, before = one_step(communicator)
    optimizer.blocks[-1].invert = lambda *_: (_ for _ in ()).throw(torch.linalg.LinAlgError("singular"))
    optimizer.blocks[-1].mend = optimizer.blocks[-1].invert
    moved = failure(optimizer) == "" and not torch.equal(before[-1], model[-1].bias)
    return moved and all(parameter.isfinite().all() for parameter in model.parameters())


def inputs_travel_during_the_backward_pass(communicator: Communicator) -> list[bool]:
    """Whether the statistics of inputs are under way when the first layer's gradient is formed, in each micro-batch."""
    model = network()
    optimizer = KFAC(model, lr=0.1, communicator=communicator, accumulation_steps=2)
    seen: list[bool] = []
    model[0].weight.register_hook(lambda _: seen.append(optimizer._gathering.under_way))
    for _ in range(2):
        x = torch.randn(6, 1, 6, 6, dtype=torch.float64)
        (functional.cross_entropy(model(x), torch.arange(6) % 3) / 2).backward()
    optimizer.step()
    return seen


def failure(optimizer: KFAC) -> str:
    try:
        optimizer.step()
    except (FloatingPointError, MemoryError) as error:
        return str(error)
    return ""


def resumed(communicator: Communicator) -> bool:
    """Whether an optimizer that loads the state of its own rank goes on to the bit."""
    options = {"statistics_interval": "adaptive", "similarity": 0.8}
    weights, states = [], []
    for _ in range(2):
        model = network()
        optimizer = KFAC(model, lr=0.02, communicator=communicator, **options)
        if states:
            model.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        generator = torch.Generator().manual_seed(5 + communicator.rank)
        for step in range(3 if states else 0, 8):
            torch.manual_seed(100 * step + communicator.rank)
            x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
            optimizer.zero_grad()
            functional.cross_entropy(model(x), torch.randint(3, (4,), generator=generator.manual_seed(step))).backward()
            optimizer.step()
            if step == 2:
                states = [{key: value.clone() for key, value in model.state_dict().items()}, optimizer.state_dict()]
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    return all(map(torch.equal, *weights))


TRAFFIC = ({"pack": True}, {"pack": False}, {"statistics_dtype": torch.bfloat16}, {"statistics_interval": "adaptive"})


def everything(communicator: Communicator) -> dict[str, Any]:
    """Results of every test on so many ranks."""
    results: dict[str, Any] = {"trained": [train(communicator, **variant) for variant in VARIANTS]}
    if communicator.size >= 3:
        results["exchanged"] = exchange_uneven_shares(communicator)
    if communicator.size == 2:
        results |= {
            "carried": [carried_bytes(communicator, **options) for options in TRAFFIC],
            "transformer": learn(STEPS, communicator, torch.float64),
            "half": train(communicator, statistics_dtype=torch.bfloat16, steps=5),
            "poisoned": step_with_a_poisoned_gradient(communicator),
            "failing": step_with_a_failing_owner(communicator),
            "singular": step_with_a_layer_that_has_no_inverse(communicator),
            "resumed": resumed(communicator),
            "overlap": inputs_travel_during_the_backward_pass(communicator),
        }
    return results


def on_gloo() -> dict[int, dict[str, Any]]:
    """One of eight ranks, in groups of 1, 2, 4 and 8, as starting processes costs seconds."""
    groups = {size: torch.distributed.new_group(list(range(size))) for size in SIZES}
    mine = [size for size in SIZES if torch.distributed.get_rank() < size]
    return {size: everything(TorchCommunicator(groups[size])) for size in mine}


def on_mpi(folder: Path) -> None:
    """One of eight ranks under mpiexec: what `on_gloo` returns, and losses of training, into a file of its own."""
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    parts = {size: MPICommunicator(Patient(MPI.COMM_WORLD.Split(0 if rank < size else 1))) for size in SIZES}
    results = {size: everything(parts[size]) for size in SIZES if rank < size}
    for size in set(training.SIZES) & set(results):
        results[size]["losses"] = [training.losses(parts[size], **variant) for variant in training.VARIANTS[:2]]
    torch.save(results, folder / f"{rank}.pt")
    PatientRequest(MPI.COMM_WORLD.Ibarrier()).Wait()


class Patient:
    """An MPI communicator that waits without keeping a core busy: there are more ranks than cores."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def Ialltoallv(self, *messages: Any) -> "PatientRequest":
        return PatientRequest(self._comm.Ialltoallv(*messages))


class PatientRequest:
    def __init__(self, request: Any) -> None:
        self._request = request

    def Wait(self) -> None:
        while not self._request.Test():
            time.sleep(1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    on_mpi(Path(sys.argv[1]))
