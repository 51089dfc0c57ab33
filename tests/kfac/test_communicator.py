"""N ranks must do what one rank does, to rounding in double precision, and send what the method says and no more."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from kinji.kfac import KFAC, TorchCommunicator
from kinji.kfac.communicator import Exchange, SerialCommunicator

from .ranks import run_on_ranks

STEPS, BATCH = 5, 12
VARIANTS = tuple(itertools.product((True, False), ("balanced", "contiguous"), (1, 2)))


def network() -> nn.Sequential:
    """Every kind of block; batch normalization frozen, as ranks would normalize by their own part of the batch."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2, bias=False)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    model[1].eval()
    return model


def train(
    communicator: SerialCommunicator | TorchCommunicator, pack: bool, ownership: str, interval: int
) -> list[Tensor]:
    model = network()
    options = {"momentum": 0.9, "damping": 1e-2, "weight_decay": 1e-2, "rescale_weights": True}
    optimizer = KFAC(
        model, lr=0.1, communicator=communicator, pack=pack, ownership=ownership, refresh_interval=interval, **options
    )
    generator = torch.Generator().manual_seed(11)
    for _ in range(STEPS):
        x = torch.randn(BATCH, 1, 6, 6, dtype=torch.float64, generator=generator)
        part = slice(communicator.rank, None, communicator.size)
        optimizer.zero_grad()
        functional.cross_entropy(model(x[part]), (torch.arange(BATCH) % 3)[part]).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_one_rank(ranks, on_ranks):
    serial = [train(SerialCommunicator(), *variant) for variant in VARIANTS]
    for results in on_ranks[ranks]:
        for weights, reference in zip(results["trained"], serial, strict=True):
            for one, other in zip(weights, reference, strict=True):
                assert (one - other).norm() <= 1e-12 * other.norm()


def exchange_uneven_shares() -> tuple[list[Tensor], list[list[Tensor]], dict[str, int]]:
    """Ranks 0, 1 and 2 own three, no and one tensor; every value names its sender."""
    communicator = TorchCommunicator()
    owned = [[torch.full((2, 3), 1.0), torch.full((), 2.0), torch.full((4,), 3.0)], [], [torch.full((5,), 4.0)]]
    sent = [[tensor * 10**communicator.rank for tensor in tensors] for tensors in owned]
    exchange = Exchange(communicator, like=torch.empty(0))
    averaged = exchange.average_onto_owners(sent, "statistics")
    return averaged, exchange.gather_from_owners(sent, "weights"), dict(communicator.carried_bytes)


def test_collectives_of_uneven_and_empty_shares(on_ranks):
    results = [of_rank["exchanged"] for of_rank in on_ranks[3]]
    mean = (1 + 10 + 100) / 3
    torch.testing.assert_close(
        results[0][0], [torch.full((2, 3), mean), torch.tensor(2 * mean), torch.full((4,), 3 * mean)]
    )
    assert results[1][0] == []
    torch.testing.assert_close(results[2][0], [torch.full((5,), 4 * mean)])
    for _, gathered, carried in results:
        assert [[tensor.shape for tensor in tensors] for tensors in gathered] == [[(2, 3), (), (4,)], [], [(5,)]]
        assert [tensor.flatten()[0].item() for tensor in gathered[0]] == [1, 2, 3]
        assert gathered[2][0][0] == 400
        assert carried == {"statistics": 4 * 16, "weights": 4 * 16}


def carried_bytes(pack: bool) -> dict[str, int]:
    communicator = TorchCommunicator()
    model = network().float()
    optimizer = KFAC(model, lr=0.1, communicator=communicator, pack=pack)
    functional.cross_entropy(model(torch.randn(6, 1, 6, 6)), torch.arange(6) % 3).backward()
    optimizer.step()
    return dict(communicator.carried_bytes)


def test_statistics_are_the_only_traffic_beyond_gradients_and_weights(on_ranks):
    parameters = sum(parameter.numel() for parameter in network().parameters())
    sizes = [10, 4, 65, 7, 8, 3]  # factors of the convolution and the two linear layers, biases included
    triangles, squares = sum(n * (n + 1) // 2 for n in sizes), sum(n * n for n in sizes)
    for results in on_ranks[2]:
        for carried, elements in zip(results["carried"], (triangles, squares), strict=True):
            assert carried["statistics"] == 4 * (elements + 3 * 4)  # and three numbers for each of four channels
            assert carried["weights"] == 4 * parameters
            assert carried["gradients"] == 4 * (parameters + 2)  # one fault count for each owner


def step_with_one_poisoned_rank() -> tuple[str, bool]:
    communicator, model = TorchCommunicator(), network()
    optimizer = KFAC(model, lr=0.1, communicator=communicator)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    functional.cross_entropy(model(torch.randn(6, 1, 6, 6, dtype=torch.float64)), torch.arange(6) % 3).backward()
    if communicator.rank == 1:
        model[0].weight.grad[0] = torch.nan
    try:
        optimizer.step()
    except FloatingPointError as error:
        distributed.barrier()
        return str(error), all(map(torch.equal, before, model.parameters()))
    return "", False


def test_a_poisoned_rank_stops_all_ranks_before_any_weight_changes(on_ranks):
    (elsewhere, unchanged_0), (named, unchanged_1) = (results["poisoned"] for results in on_ranks[2])
    assert unchanged_0 and unchanged_1
    assert "another rank" in elsewhere and named.startswith("0 has a gradient that is not finite")


def everything() -> dict[str, Any]:
    """Results of every test of this file, as starting processes costs seconds."""
    return {
        "trained": [train(TorchCommunicator(), *variant) for variant in VARIANTS],
        "exchanged": exchange_uneven_shares() if distributed.get_world_size() == 3 else None,
        "carried": [carried_bytes(pack) for pack in (True, False)],
        "poisoned": step_with_one_poisoned_rank(),
    }


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    return {ranks: run_on_ranks(ranks, tmp_path_factory.mktemp("ranks"), everything) for ranks in (2, 3)}
