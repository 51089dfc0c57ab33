import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinji.training import build_optimizer
from kinji.training.optimizers import sgd_share

Rule = Callable[[Tensor, Tensor, dict[str, Any], int], Tensor]
"""Next weight from weight, gradient, the rule's own memory and the number of the step, from 0."""


def follow(rule: Rule, name: str, *, steps: int = 6, **options: float) -> None:
    """Take steps with an optimizer and with a rule written out, each from its own weights, and compare the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    written = copy.deepcopy(model)
    optimizer = build_optimizer(name, model, **options)
    memories: list[dict[str, Any]] = [{} for _ in written.parameters()]
    for step in range(steps):
        x, y = torch.randn(8, 3).double(), torch.randint(2, (8,))
        for network in (model, written):
            network.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for weight, memory in zip(written.parameters(), memories, strict=True):
                assert weight.grad is not None
                weight.copy_(rule(weight.clone(), weight.grad, memory, step))
    torch.testing.assert_close(list(model.parameters()), list(written.parameters()), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_sgd(nesterov: bool) -> None:
    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], step: int) -> Tensor:
        g = g + 0.01 * w
        memory["v"] = 0.8 * memory.get("v", 0) + g
        return w - 0.1 * (g + 0.8 * memory["v"] if nesterov else memory["v"])

    follow(rule, "sgd", lr=0.1, momentum=0.8, weight_decay=0.01, nesterov=nesterov)


def test_lars() -> None:
    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], step: int) -> Tensor:
        decay = 0.01 if w.dim() > 1 else 0.0
        ratio = 0.02 * w.norm() / (g.norm() + decay * w.norm()) if w.dim() > 1 else 1.0
        memory["v"] = 0.9 * memory.get("v", 0) + 0.5 * ratio * (g + decay * w)
        return w - memory["v"]

    follow(rule, "lars", lr=0.5, momentum=0.9, weight_decay=0.01, trust=0.02)


@pytest.mark.parametrize(("weight", "slope"), [(0.0, 1.0), (1.0, 0.0)])
def test_lars_survives_norms_of_zero(weight: float, slope: float) -> None:
    layer = nn.Linear(2, 2, bias=False)
    nn.init.constant_(layer.weight, weight)
    optimizer = build_optimizer("lars", layer, lr=0.5, momentum=0.9)
    layer.weight.grad = torch.full((2, 2), slope)
    optimizer.step()
    assert torch.equal(layer.weight, torch.full((2, 2), weight - 0.5 * slope))


def test_rmsprop_turns_into_momentum_sgd() -> None:
    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], step: int) -> Tensor:
        share = {0: 0.5 * math.exp(-4), 1: 0.5 * math.exp(-2), 2: 0.5, 3: 1.0, 4: 1.0, 5: 1.0}[step]
        g = g + 0.01 * w
        memory["s"] = 0.99 * memory.get("s", 0) + 0.01 * g**2
        slope = share * g + (1 - share) * 3e-4 / 0.1 * g / (memory["s"].sqrt() + 1e-8)
        memory["v"] = 0.9 * memory.get("v", 0) - slope
        return w + 0.1 * memory["v"]

    times = {"steps_per_epoch": 2, "center": 1.0, "period": 0.5}  # half at the third step, all of it at the fourth
    follow(rule, "rmsprop-sgd", lr=0.1, momentum=0.9, weight_decay=0.01, rmsprop_lr=3e-4, **times)


def test_the_share_of_sgd_is_smooth_at_the_center() -> None:
    shares = [sgd_share(epoch, 10, 5) for epoch in (0, 10 - 1e-6, 10, 10 + 1e-6, 12.5, 90)]
    assert shares == pytest.approx([0.5 * math.exp(-4), 0.5, 0.5, 0.5, 1, 1], abs=1e-6)
    left, right = (sgd_share(10 + h, 10, 5) - 0.5 for h in (-1e-4, 1e-4))
    assert right / -left == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam(decoupled: bool) -> None:
    def rule(w: Tensor, g: Tensor, memory: dict[str, Any], step: int) -> Tensor:
        memory["m"] = 0.8 * memory.get("m", 0) + 0.2 * g
        memory["s"] = 0.99 * memory.get("s", 0) + 0.01 * g**2
        mean, square = memory["m"] / (1 - 0.8 ** (step + 1)), memory["s"] / (1 - 0.99 ** (step + 1))
        return w * (1 - 0.1 * 0.02 * decoupled) - 0.1 * mean / (square.sqrt() + 1e-8)

    options = {"weight_decay": 0.02} if decoupled else {}
    follow(rule, "adamw" if decoupled else "adam", lr=0.1, momentum=0.8, second=0.99, **options)


@pytest.mark.parametrize("name", ["lars", "rmsprop-sgd"])
def test_what_the_next_step_depends_on_is_in_the_state(name: str) -> None:
    options = {"lr": 0.1, "momentum": 0.9} | ({"steps_per_epoch": 1, "center": 2.0} if name == "rmsprop-sgd" else {})
    torch.manual_seed(0)
    models = [nn.Linear(3, 2)]
    optimizers = [build_optimizer(name, models[0], **options)]
    for step in range(5):
        if step == 2:
            models.append(copy.deepcopy(models[0]))
            optimizers.append(build_optimizer(name, models[1], **options))
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        x = torch.randn(4, 3)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert torch.equal(models[0].weight, models[1].weight)


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
