import copy

import pytest
import torch
from torch import nn

from kinji.training import build_optimizer


def test_momentum_sgd_equals_a_hand_written_update() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    velocities = [torch.zeros_like(weight) for weight in weights]
    optimizer = build_optimizer("sgd", model, lr=0.1, momentum=0.8, weight_decay=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 3).double()).square().mean().backward()
        for weight, velocity, parameter in zip(weights, velocities, model.parameters(), strict=True):
            assert parameter.grad is not None
            velocity.mul_(0.8).add_(parameter.grad + 0.01 * weight)
            weight.sub_(0.1 * velocity)
        optimizer.step()
    torch.testing.assert_close(list(model.parameters()), [*map(nn.Parameter, weights)], rtol=1e-14, atol=0)


def test_kfac_is_not_momentum_sgd() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(3, 2).double()]
    models.append(copy.deepcopy(models[0]))
    x, y = torch.randn(8, 3).double(), torch.randint(2, (8,))
    for name, model in zip(("sgd", "kfac"), models, strict=True):
        optimizer = build_optimizer(name, model, lr=0.1, momentum=0.9)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert not torch.allclose(models[0].weight, models[1].weight)


def test_an_unknown_optimizer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"unknown optimizer 'k-fac'; did you mean 'kfac'"):
        build_optimizer("k-fac", nn.Linear(2, 2), lr=0.1, momentum=0.9)


def test_an_option_of_another_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="damping"):
        build_optimizer("sgd", nn.Linear(2, 2), lr=0.1, momentum=0.9, damping=1e-3)
