"""The optimizer's step against the explicit dense formula, its resumption, and what it refuses."""

import copy
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kinji.kfac import KFAC

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (5, 6)),
    "stride": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (5, 2, 6, 5)),
    "dilation": (lambda: nn.Conv2d(2, 3, (2, 3), dilation=(2, 1), bias=False), (5, 2, 6, 5)),
}


def mean_loss(layer: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    output = layer(x)
    return functional.cross_entropy(output.flatten(2).tanh().sum(2) if output.ndim > 2 else output, target)


def homogeneous(tensors: list[Tensor], outputs: int) -> Tensor:
    return torch.cat([tensor.reshape(outputs, -1) for tensor in tensors], dim=1)


def dense_direction(layer: nn.Module, x: Tensor, target: Tensor, damping: float) -> Tensor:
    """((G + sqrt(l) / pi I) (x) (A + pi sqrt(l) I))^-1 g with factors from one autograd call per example."""
    m, outputs = len(x), len(layer.weight)
    patches = (
        functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        if isinstance(layer, nn.Conv2d)
        else x[..., None]
    )
    if layer.bias is not None:
        patches = torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)
    a = torch.einsum("mis,mjs->ij", patches, patches) / (m * patches.shape[2])
    g = torch.zeros(outputs, outputs, dtype=x.dtype)
    for example, label in zip(x, target, strict=True):
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1]))
        (alone,) = torch.autograd.grad(mean_loss(layer, example[None], label[None]), seen)
        handle.remove()
        g += (
            torch.einsum(
                "ops,oqs->pq", alone.flatten(2) if alone.ndim > 2 else alone[..., None], alone.reshape(1, outputs, -1)
            )
            / m
        )
    gradients = torch.autograd.grad(mean_loss(layer, x, target), list(layer.parameters()))
    gradient = homogeneous(list(gradients), outputs)
    pi = ((a.trace() / len(a)) / (g.trace() / len(g))).sqrt()
    identity_g, identity_a = torch.eye(len(g), dtype=g.dtype), torch.eye(len(a), dtype=a.dtype)
    dense = torch.kron(g + damping**0.5 / pi * identity_g, a + pi * damping**0.5 * identity_a)
    return torch.linalg.solve(dense, gradient.flatten()).view_as(gradient)


@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
def test_first_step_is_the_dense_natural_gradient(build, shape):
    torch.manual_seed(0)
    layer, x, target = build().double(), torch.randn(shape, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    before = homogeneous([p.detach().clone() for p in layer.parameters()], len(layer.weight))
    reference = dense_direction(layer, x, target, damping=1e-2)
    optimizer = KFAC(layer, lr=0.5, damping=1e-2, weight_decay=0.1)
    mean_loss(layer, x, target).backward()
    optimizer.step()
    after = homogeneous([p.detach() for p in layer.parameters()], len(layer.weight))
    torch.testing.assert_close(after, before - 0.5 * (reference + 0.1 * before), rtol=1e-10, atol=1e-12)


def network() -> nn.Sequential:
    torch.manual_seed(7)
    layers = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers).double()


def batch(seed: int, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 1, 6, 6, dtype=torch.float64, generator=generator), torch.arange(size) % 3


def train(model: nn.Module, optimizer: KFAC, seeds: range) -> list[Tensor]:
    for seed in seeds:
        x, target = batch(seed)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_momentum_is_the_previous_change_of_the_weights():
    """With zero learning rate in the second step, it repeats the first one's change times the momentum."""
    model = network()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = KFAC(model, lr=0.1, momentum=0.5)
    first = train(model, optimizer, range(1))
    optimizer.param_groups[0]["lr"] = 0.0
    second = train(model, optimizer, range(1, 2))
    for w0, w1, w2 in zip(start, first, second, strict=True):
        torch.testing.assert_close(w2 - w1, 0.5 * (w1 - w0), rtol=1e-9, atol=1e-15)


def test_statistics_are_averaged_with_the_named_decay():
    model, single = network(), network()
    optimizer, first, second = KFAC(model, lr=0.0, statistics_decay=0.75), KFAC(single, lr=0.0), None
    train(single, first, range(1))
    second = KFAC(fresh := network(), lr=0.0)
    train(fresh, second, range(1, 2))
    train(model, optimizer, range(2))
    averages, old, new = (o.state[o.blocks[0].parameters[0]]["statistics"] for o in (optimizer, first, second))
    for average, x, y in zip(averages, old, new, strict=True):
        torch.testing.assert_close(average, 0.75 * x + 0.25 * y)


def test_refresh_interval_reuses_inverses_and_forms_no_statistics_between():
    model = network()
    optimizer = KFAC(model, lr=0.01, refresh_interval=3)
    formed = []
    accumulate = optimizer.accumulate
    optimizer.accumulate = lambda *call: (formed.append(optimizer.param_groups[0]["steps"]), accumulate(*call))[1]
    train(model, optimizer, range(5))
    assert formed == [0] * 3 + [3] * 3


def test_two_half_batches_equal_one_batch():
    """Loss of each half divided by two; batch normalization frozen, as it is not linear in the batch."""
    whole, halves = network(), network()
    x, target = batch(0)
    for model, parts in ((whole, 1), (halves, 2)):
        model[1].eval()
        optimizer = KFAC(model, lr=0.1)
        for part, labels in zip(x.chunk(parts), target.chunk(parts), strict=True):
            (functional.cross_entropy(model(part), labels) / parts).backward()
        optimizer.step()
    for one, two in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-13)


def test_a_step_ends_its_statistics_however_gradients_are_zeroed():
    ours, models = network(), network()
    weights = train(ours, KFAC(ours, lr=0.1), range(3))
    optimizer = KFAC(models, lr=0.1)
    optimizer.zero_grad = models.zero_grad
    assert all(map(torch.equal, weights, train(models, optimizer, range(3))))


def test_weights_are_rescaled_to_the_published_norm():
    model = network()
    weights = train(model, KFAC(model, lr=0.1, rescale_weights=True), range(2))
    assert weights[0].norm().item() == pytest.approx((2 * 4) ** 0.5)
    assert weights[3].norm().item() == pytest.approx((2 * 3) ** 0.5)


@pytest.mark.parametrize("interval", [1, 3])
def test_resumes_to_the_bit(interval):
    model = network()
    optimizer = KFAC(model, lr=0.05, refresh_interval=interval)
    train(model, optimizer, range(4))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    uninterrupted = train(model, optimizer, range(4, 9))
    resumed = network()
    other = KFAC(resumed, lr=1.0)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert all(map(torch.equal, uninterrupted, train(resumed, other, range(4, 9))))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_non_finite_gradient_is_refused_before_it_reaches_anything(poison):
    model = network()
    optimizer = KFAC(model, lr=0.05)
    before = train(model, optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.zero_grad()
    x, target = batch(2)
    functional.cross_entropy(model(x), target).backward()
    model[4].weight.grad[0, 0] = poison
    with pytest.raises(FloatingPointError, match=r"^4 has a gradient that is not finite"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    for index, entries in optimizer.state_dict()["state"].items():
        assert torch.equal(entries["velocity"], state[index]["velocity"])
    assert all(w.isfinite().all() for w in train(model, optimizer, range(2, 4)))


def test_overflowing_update_is_refused():
    model = network()
    optimizer = KFAC(model, lr=1e308)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(FloatingPointError, match="were not taken"):
        train(model, optimizer, range(1))
    assert all(map(torch.equal, before, model.parameters()))


def test_layer_outside_the_loss_is_named():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "forgotten": nn.Linear(3, 2)})
    optimizer = KFAC(model, lr=0.1)
    model["used"](torch.ones(4, 3)).square().mean().backward()
    with pytest.raises(FloatingPointError, match="forgotten took no part in the loss"):
        optimizer.step()


def test_unsupported_parameters_are_named_and_follow_the_first_order_rule(caplog):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3))
    with caplog.at_level(logging.WARNING):
        optimizer = KFAC(model, lr=0.1)
    assert "0.weight, 2.weight, 2.bias" in caplog.text
    reference = copy.deepcopy(model[0])
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(torch.randn(6, 4, 4, 4)), torch.arange(6) % 3).backward()
        reference.weight.grad = model[0].weight.grad.clone()
        optimizer.step()
        sgd.step()
    torch.testing.assert_close(model[0].weight, reference.weight)


def test_shared_weights_are_updated_once_by_the_first_order_rule():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = KFAC(model, lr=0.1)
    assert [block.name for block in optimizer.blocks] == ["0.weight", "0.bias", "1.bias"]


def test_nothing_is_formed_without_gradients():
    model = network()
    optimizer = KFAC(model, lr=0.1)
    with torch.no_grad():
        model(batch(0)[0])
    model(batch(0)[0])
    assert not optimizer._passes


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", -1.0), ("momentum", 1.0), ("damping", -1e-3), ("statistics_decay", 1.0), ("refresh_interval", 0)],
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        KFAC(network(), **({"lr": 0.1} | {option: value}))


def test_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameter"):
        KFAC(nn.ReLU(), lr=0.1)
