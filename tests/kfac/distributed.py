"""What each rank of the multi-rank tests does, under gloo and under MPI."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinji.kfac import KFAC, Communicator, MPICommunicator, TorchCommunicator
from kinji.kfac.communicator import Exchange, Parcel

STEPS, BATCH = 20, 16
EVERY = {"momentum": 0.9, "damping": 1e-2, "weight_decay": 1e-2, "rescale_weights": "published"}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"pack": False, "ownership": "contiguous"},
    {"statistics_interval": 3, "inverse_interval": 2, "pack": True, "ownership": "contiguous"},
    {"statistics_interval": "adaptive", "similarity": 0.8, "statistics_decay": 0.0},
    {"statistics_interval": "adaptive", "similarity": 0.5, "pack": False, "ownership": "contiguous"},
    {"statistics_interval": 2, "pack": False, "inverse": "eigen", "normalization": "full"},
    {"fisher": "exact", "normalization": "diagonal", "statistics_interval": 3},
    {"accumulation_steps": 2, "momentum_rule": "released"},
)


def network() -> nn.Sequential:
    """Every kind of block; batch normalization frozen, as ranks would normalize by their own part of the batch."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2, bias=False)]
    head = [nn.Flatten(), nn.Linear(64, 7), nn.Tanh(), nn.LayerNorm(7), nn.PReLU(), nn.Linear(7, 3)]
    model = nn.Sequential(*layers, *head).double()
    model[1].eval()
    return model


def train(communicator: Communicator | None, options: dict[str, Any], steps: int = STEPS) -> list[Tensor]:
    model = network()
    rank, size = (communicator.rank, communicator.size) if communicator else (0, 1)
    optimizer = KFAC(model, lr=0.02, communicator=communicator, **EVERY, **options)
    generator = torch.Generator().manual_seed(11)
    for _ in range(steps):
        x = torch.randn(BATCH, 1, 6, 6, dtype=torch.float64, generator=generator)
        target = torch.arange(BATCH) % 3
        optimizer.zero_grad()
        for micro in range(optimizer.accumulation_steps):
            part = slice(micro * size + rank, None, size * optimizer.accumulation_steps)
            output = model(x[part])
            optimizer.form_statistics(output)
            (functional.cross_entropy(output, target[part]) / optimizer.accumulation_steps).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


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
    """Whether the statistics of inputs are under way when the first layer's gradient arrives, in each micro-batch."""
    model = network()
    optimizer = KFAC(model, lr=0.1, communicator=communicator, accumulation_steps=2)
    seen: list[bool] = []
    accumulate = optimizer.accumulate

    def note(statistic: Any, *arguments: Any) -> None:
        accumulate(statistic, *arguments)
        if statistic == (optimizer.blocks[0], 1):
            seen.append(optimizer._gathering.under_way)

    optimizer.accumulate = note  # type: ignore[method-assign]
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
SIZES = (1, 2, 4, 8)


def everything(communicator: Communicator, variants: Sequence[dict[str, Any]] = VARIANTS) -> dict[str, Any]:
    """Results of every test on so many ranks."""
    results: dict[str, Any] = {"trained": [train(communicator, variant) for variant in variants]}
    if communicator.size >= 3:
        results["exchanged"] = exchange_uneven_shares(communicator)
    if communicator.size == 2:
        results |= {
            "carried": [carried_bytes(communicator, **options) for options in TRAFFIC],
            "half": train(communicator, {"statistics_dtype": torch.bfloat16}, steps=5),
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


def on_mpi() -> None:
    """One of eight ranks under mpiexec: compare with training alone, and say so."""
    from mpi4py import MPI

    from ..training import distributed as training

    world = MPI.COMM_WORLD
    alone = [train(None, variant) for variant in VARIANTS] if world.rank == 0 else None
    meet(world)
    alone = world.bcast(alone)
    for size in SIZES:
        part = world.Split(0 if world.rank < size else 1)
        if world.rank < size:
            compare_under_mpi(MPICommunicator(part), alone)
        if world.rank < size <= max(training.SIZES):
            training.compare(MPICommunicator(part))
        meet(world)
    if world.rank == 0:
        print("equal", flush=True)


def meet(world: Any) -> None:
    """Wait for the other ranks without keeping a core busy, as waiting inside MPI would."""
    others = world.Ibarrier()
    while not others.Test():
        time.sleep(0.01)


def compare_under_mpi(communicator: MPICommunicator, alone: list[list[Tensor]]) -> None:
    """Ranks that wait inside MPI keep their cores busy, so more of them than cores train fewer variants."""
    chosen = range(len(VARIANTS)) if communicator.size <= 2 else (0, 1, 3)
    results = everything(communicator, [VARIANTS[k] for k in chosen])
    for k, weights in zip(chosen, results["trained"], strict=True):
        for one, other in zip(weights, alone[k], strict=True):
            assert (one - other).norm() <= 1e-10 * other.norm(), (communicator.size, VARIANTS[k])
    if communicator.size == 2:
        assert results["singular"] and results["resumed"] and results["failing"][1] and results["poisoned"][1]
        assert results["carried"][0]["statistics"] < results["carried"][1]["statistics"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    on_mpi()
