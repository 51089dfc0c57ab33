"""The optimizer's step against the explicit dense formula, its resumption, and what it refuses."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kinji.kfac import KFAC, blocked_cholesky, recorder, triangle

from .triangles import lower_alone


@pytest.fixture(autouse=True)
def small_panels(monkeypatch):
    """Factors of a few rows have several panels, as those of thousands."""
    monkeypatch.setattr(triangle, "PANEL", 3)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (5, 6)),
    "stride": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (5, 2, 6, 5)),
    "dilation": (lambda: nn.Conv2d(2, 3, (2, 3), dilation=(2, 1), bias=False), (5, 2, 6, 5)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (5, 4, 4, 5)),
    "depthwise": (lambda: nn.Conv2d(3, 3, 3, stride=2, groups=3, bias=False), (5, 3, 6, 5)),
}


def mean_loss(layer: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    output = layer(x)
    return functional.cross_entropy(output.flatten(2).tanh().sum(2) if output.ndim > 2 else output, target)


def homogeneous(tensors: list[Tensor], outputs: int) -> Tensor:
    return torch.cat([tensor.reshape(outputs, -1) for tensor in tensors], dim=1)


def factors_by_examples(layer: nn.Module, x: Tensor, target: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """A and G of each group, from unfold and one autograd call per example."""
    m, groups = len(x), getattr(layer, "groups", 1)
    patches = (
        functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        if isinstance(layer, nn.Conv2d)
        else x[..., None]
    )
    a, g = [], []
    for of_group in patches.chunk(groups, dim=1):
        rows = of_group if layer.bias is None else torch.cat([of_group, torch.ones_like(of_group[:, :1])], dim=1)
        a.append(torch.einsum("mis,mjs->ij", rows, rows) / (m * rows.shape[2]))
    gradients = torch.stack([gradient_alone(layer, x[k], target[k]) for k in range(m)])
    for of_group in gradients.chunk(groups, dim=1):
        g.append(torch.einsum("mis,mjs->ij", of_group, of_group) / m)
    return a, g


def gradient_alone(layer: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Gradient of one example's loss by the layer's output (outputs, positions)."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda *call: seen.append(call[-1]))
    (alone,) = torch.autograd.grad(mean_loss(layer, x[None], target[None]), seen)
    handle.remove()
    return alone[0].flatten(1) if alone.ndim > 2 else alone[0][:, None]


def dense_direction(layer: nn.Module, x: Tensor, target: Tensor, damping: float) -> Tensor:
    """((G + sqrt(l) / pi I) (x) (A + pi sqrt(l) I))^-1 g, group by group."""
    gradient = homogeneous(
        list(torch.autograd.grad(mean_loss(layer, x, target), list(layer.parameters()))), len(layer.weight)
    )
    factors = zip(*factors_by_examples(layer, x, target), strict=True)
    return torch.cat(
        [
            dense_solution(a, g, piece, damping)
            for (a, g), piece in zip(factors, gradient.chunk(getattr(layer, "groups", 1)), strict=True)
        ]
    )


def dense_solution(a: Tensor, g: Tensor, gradient: Tensor, damping: float) -> Tensor:
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
        output = model(x)
        optimizer.form_statistics(output)
        functional.cross_entropy(output, target).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def statistics(optimizer: KFAC) -> list[Tensor]:
    states = optimizer.curvature.states.items()
    return [s.tril() if block.symmetric[k] else s for block, state in states for k, s in enumerate(state.statistics)]


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


def test_released_momentum_is_scaled_with_the_learning_rate():
    start = [parameter.detach().clone() for parameter in network().parameters()]
    changes = []
    for rule, momentum in (("released", 0.5), ("published", 0.25)):
        model = network()
        optimizer = KFAC(model, lr=0.1, momentum=0.5, momentum_rule=rule)
        train(model, optimizer, range(1))
        optimizer.param_groups[0].update(lr=0.05, momentum=momentum if rule == "published" else 0.5)
        changes.append([w - w0 for w, w0 in zip(train(model, optimizer, range(1, 2)), start, strict=True)])
    torch.testing.assert_close(*changes, rtol=1e-12, atol=1e-15)


def test_statistics_are_averaged_with_the_named_decay():
    both, first, second = ((model := network(), KFAC(model, lr=0.0, statistics_decay=0.75)) for _ in range(3))
    train(*first, range(1))
    train(*second, range(1, 2))
    train(*both, range(2))
    for average, x, y in zip(*(statistics(o) for _, o in (both, first, second)), strict=True):
        torch.testing.assert_close(average, 0.75 * x + 0.25 * y)


def test_intervals_reuse_what_they_say_and_form_nothing_between():
    model = network()
    optimizer = KFAC(model, lr=0.01, statistics_interval=2, inverse_interval=4)
    formed, inverted = [], []
    accumulate, block = optimizer.accumulate, optimizer.blocks[0]
    optimizer.accumulate = lambda *call: (formed.append(optimizer.steps), accumulate(*call))[1]
    invert = block.invert
    block.invert = lambda *call: (inverted.append(optimizer.steps), invert(*call))[1]
    train(model, optimizer, range(7))
    assert formed == [0] * 5 + [2] * 5 + [4] * 5 + [6] * 5
    assert inverted == [0, 4]


def test_adaptive_intervals_grow_on_one_batch_again_and_again():
    model = network()
    model[1].eval()
    optimizer = KFAC(model, lr=0.0, statistics_interval="adaptive")
    x, target = batch(0)
    due = []
    for _ in range(12):
        due.append(len(optimizer._due()))
        optimizer.zero_grad()
        functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    assert due == [5, 5, 5, 0, 5, 0, 0, 5, 0, 0, 0, 0]  # five statistics, at steps 0, 1, 2, 4, 7, 12


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
def test_micro_batches_equal_one_batch(fisher):
    """Loss of each part divided by their number; batch normalization frozen, as it is not linear in the batch."""
    whole, parts = network(), network()
    x, target = batch(0)
    for model, number in ((whole, 1), (parts, 3)):
        model[1].eval()
        optimizer = KFAC(model, lr=0.1, accumulation_steps=number, fisher=fisher)
        for _ in range(2):
            optimizer.zero_grad()
            for part, labels in zip(x.chunk(number), target.chunk(number), strict=True):
                output = model(part)
                optimizer.form_statistics(output)
                (functional.cross_entropy(output, labels) / number).backward()
            optimizer.step()
    torch.testing.assert_close(list(whole.parameters()), list(parts.parameters()), rtol=1e-9, atol=1e-13)


def test_a_pass_too_many_is_refused_by_name():
    model = network()
    optimizer = KFAC(model, lr=0.1)
    for _ in range(2):
        functional.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    with pytest.raises(FloatingPointError, match="the statistics of 0 were formed 2 times"):
        optimizer.step()


def test_a_step_ends_its_statistics_however_gradients_are_zeroed():
    ours, models = network(), network()
    weights = train(ours, KFAC(ours, lr=0.1), range(3))
    optimizer = KFAC(models, lr=0.1)
    optimizer.zero_grad = models.zero_grad
    assert all(map(torch.equal, weights, train(models, optimizer, range(3))))


def test_forward_passes_without_a_backward_pass_leave_no_trace():
    ours, other = network(), network()
    weights = train(ours, KFAC(ours, lr=0.1), range(2))
    optimizer = KFAC(other, lr=0.1)
    for seed in range(2):
        with torch.no_grad():
            other[:1](batch(5)[0])
        kept = other[0](batch(6)[0])
        train(other, optimizer, range(seed, seed + 1))
        assert kept.requires_grad
    assert all(map(torch.equal, weights, [p.detach() for p in other.parameters()]))


def test_weights_are_rescaled_to_the_published_norm():
    model = network()
    weights = train(model, KFAC(model, lr=0.1, rescale_weights="published"), range(2))
    assert weights[0].norm().item() == pytest.approx((2 * 4) ** 0.5)
    assert weights[3].norm().item() == pytest.approx((2 * 3) ** 0.5)


def test_released_rescaling_only_shrinks():
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(100)
        model[4].weight.mul_(0.01)
    weights = train(model, KFAC(model, lr=1e-9, rescale_weights="released"), range(1))
    assert weights[0].norm().item() == pytest.approx((2 * 4) ** 0.5)
    assert weights[3].norm().item() < 0.1


OPTIONS = {
    "every step": {"statistics_decay": 0.0},
    "intervals": {"statistics_interval": 2, "inverse_interval": 3},
    "adaptive": {"statistics_interval": "adaptive", "similarity": 0.9},
    "adaptive, replaced": {"statistics_interval": "adaptive", "similarity": 0.9, "statistics_decay": 0.0},
    "eigen": {"inverse": "eigen", "statistics_interval": 2},
    "full": {"normalization": "full", "momentum_rule": "released", "rescale_weights": "released"},
    "sampled": {"fisher": "sampled"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("interrupted", [1, 5])
def test_resumes_to_the_bit(options, interrupted, tmp_path):
    model = network()
    optimizer = KFAC(model, lr=0.05, **options)
    train(model, optimizer, range(interrupted))
    torch.save((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()), tmp_path / "checkpoint")
    uninterrupted = train(model, optimizer, range(interrupted, 9))
    resumed = network()
    other = KFAC(resumed, lr=1.0, **options)
    train(resumed, other, range(2))  # what is loaded replaces all there was
    saved = torch.load(tmp_path / "checkpoint")
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    assert all(map(torch.equal, uninterrupted, train(resumed, other, range(interrupted, 9))))


def test_state_is_that_of_the_moment_it_was_taken():
    model = network()
    optimizer = KFAC(model, lr=0.05)
    train(model, optimizer, range(2))
    whole = optimizer.state_dict()
    taken, velocities = whole["kfac"], [entry["velocity"].clone() for entry in whole["state"].values()]
    before = copy.deepcopy(taken)
    train(model, optimizer, range(2, 4))
    assert all(map(torch.equal, velocities, (entry["velocity"] for entry in whole["state"].values())))
    for name, state in taken["blocks"].items():
        for part in ("statistics", "inverse"):
            assert all(map(torch.equal, state[part], before["blocks"][name][part]))
    with pytest.raises(ValueError, match="other layers"):
        KFAC(nn.Linear(2, 2), lr=0.1).load_state_dict(
            {**KFAC(nn.Linear(2, 2), lr=0.1).state_dict(), "kfac": {**taken, "blocks": {"x": {}}}}
        )


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


def test_non_finite_statistic_is_not_taken_and_raises_the_damping_of_its_layer():
    model = network()
    optimizer = KFAC(model, lr=0.05)
    train(model, optimizer, range(2))
    block = optimizer.blocks[2]
    before = [tensor.clone() for tensor in optimizer.curvature.states[block].statistics]
    optimizer.zero_grad()
    functional.cross_entropy(model(batch(2)[0]), batch(2)[1]).backward()
    optimizer._gathering.sums[block, 0][1, 1] = torch.nan
    with pytest.warns(UserWarning, match="4: a statistic is not finite"):
        optimizer.step()
    state = optimizer.curvature.states[block]
    assert torch.equal(state.statistics[0], before[0]) and not torch.equal(state.statistics[1], before[1])
    assert all(w.isfinite().all() for w in train(model, optimizer, range(3, 5)))
    assert state.raised == 1


def test_first_statistic_that_is_not_finite_leaves_its_layer_to_the_first_order_rule():
    model = network()
    optimizer = KFAC(model, lr=0.05, momentum=0.0)
    functional.cross_entropy(model(batch(2)[0]), batch(2)[1]).backward()
    expected = model[4].weight.detach() - 0.05 * model[4].weight.grad
    optimizer._gathering.sums[optimizer.blocks[2], 1][0, 0] = torch.inf
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    torch.testing.assert_close(model[4].weight.detach(), expected)


def test_block_that_cannot_be_inverted_follows_the_first_order_rule():
    model = network()
    optimizer = KFAC(model, lr=0.05)
    optimizer.blocks[0].invert = lambda *_: torch.tensor(False)
    optimizer.blocks[0].mend = lambda *_: (_ for _ in ()).throw(torch.linalg.LinAlgError("0: factor A"))
    with pytest.warns(UserWarning, match="0: factor A; 0 follows the first-order rule"):
        weights = train(model, optimizer, range(2))
    assert all(weight.isfinite().all() for weight in weights)


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
    model = nn.Sequential(nn.Conv1d(4, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 8), nn.PReLU(), nn.Linear(8, 3))
    with caplog.at_level(logging.WARNING):
        optimizer = KFAC(model, lr=0.1, exclude=[model[2]])
    assert "0.weight, 2.weight, 2.bias, 3.weight" in caplog.text
    reference = copy.deepcopy(model[0])
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(torch.randn(6, 4, 6)), torch.arange(6) % 3).backward()
        reference.weight.grad = model[0].weight.grad.clone()
        optimizer.step()
        sgd.step()
    torch.testing.assert_close(model[0].weight, reference.weight)


def test_shared_weights_are_updated_once_by_the_first_order_rule():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = KFAC(model, lr=0.1)
    assert [block.name for block in optimizer.blocks] == ["0.weight", "0.bias", "1.bias"]


def test_groups_of_parameters_have_entries_of_their_own():
    model, reference = network(), network()
    groups = [{"params": model[4].parameters(), "lr": 0.0, "momentum": 0.0}]
    weights = train(model, KFAC(model, lr=0.1, param_groups=groups), range(1))
    moved = train(reference, KFAC(reference, lr=0.1), range(1))
    assert all(map(torch.equal, weights[:3], moved[:3]))
    assert torch.equal(weights[3], network()[4].weight)
    with pytest.raises(ValueError, match="not of the model"):
        KFAC(model, lr=0.1, param_groups=[{"params": reference[4].parameters()}])
    with pytest.raises(ValueError, match="damping=-1"):
        KFAC(model, lr=0.1, param_groups=[{"params": model[4].parameters(), "damping": -1}])


def test_a_block_has_the_damping_of_the_group_of_its_weight():
    low, high, mixed = network(), network(), network()
    weights = [
        train(model, KFAC(model, lr=0.1, damping=damping), range(1)) for model, damping in ((low, 1e-3), (high, 1.0))
    ]
    groups = [{"params": mixed[4].parameters(), "damping": 1.0}]
    ours = train(mixed, KFAC(mixed, lr=0.1, damping=1e-3, param_groups=groups), range(1))
    assert all(map(torch.equal, ours, weights[0][:3] + weights[1][3:]))
    assert not torch.equal(weights[0][3], weights[1][3])


def test_channels_last_changes_nothing():
    models = network(), network().to(memory_format=torch.channels_last)
    weights = []
    for model in models:
        optimizer = KFAC(model, lr=0.1)
        for seed in range(3):
            x, target = batch(seed)
            x = x.to(memory_format=torch.channels_last) if model is models[1] else x
            optimizer.zero_grad()
            functional.cross_entropy(model(x), target).backward()
            optimizer.step()
        weights.append([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(*weights, rtol=1e-10, atol=1e-13)


def test_autocast_stays_close_to_full_precision_in_full_precision_statistics():
    losses = []
    for enabled in (False, True):
        model = network().float()
        optimizer = KFAC(model, lr=0.05)
        for seed in range(5):
            x, target = batch(seed % 2)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = functional.cross_entropy(model(x.float()), target)
                loss.backward()  # inside, as many scripts have it
                optimizer.step()
        losses.append(loss.item())
        assert all(tensor.dtype == torch.float32 for tensor in statistics(optimizer))
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_scaler_changes_nothing_but_leaves_out_steps_with_overflow():
    plain, scaled = network(), network()
    train(plain, KFAC(plain, lr=0.1), range(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = KFAC(scaled, lr=0.1, grad_scaler=scaler)
    for seed in (0, 1, 7, 2):
        x, target = batch(seed)
        optimizer.zero_grad()
        scaler.scale(functional.cross_entropy(scaled(x), target)).backward()
        if seed == 7:
            scaled[4].weight.grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**9
    torch.testing.assert_close(list(scaled.parameters()), list(plain.parameters()), rtol=1e-9, atol=1e-13)


def test_the_lines_of_the_readme_train():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (lines,) = (part.split("```")[0] for part in text.split("```python\n") if "from kinji.kfac" in part.split("```")[0])
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    exec(lines, {"torch": torch, "model": model, "loader": [batch(0)] * 9, "cross_entropy": functional.cross_entropy})
    x, target = batch(0)
    reference = network()
    assert not any(map(torch.equal, before, model.parameters()))
    assert functional.cross_entropy(model(x), target) < 0.5 * functional.cross_entropy(reference(x), target)


def residual() -> nn.Module:
    """Layers that share gradients, into which autograd adds in place where nobody else holds them."""

    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self:
                x = x + layer(x)
            return x

    torch.manual_seed(8)
    trunk = [nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)) for _ in range(5)]
    return nn.Sequential(Residual(*trunk), nn.Flatten(), nn.Linear(36, 3)).double()


@pytest.mark.parametrize("build", [network, residual])
@pytest.mark.parametrize("options", [{}, {"accumulation_steps": 3}, {"fisher": "exact"}], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_that_are_held_make_the_statistics_of_those_taken_at_once(build, options, threads, monkeypatch):
    """Also where what they belong to is gone, or in use again, when the backward pass has returned."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    trained = []
    for held in (-1, 2000, recorder.HELD):
        monkeypatch.setattr(recorder, "HELD", held)
        model = build()
        optimizer = KFAC(model, lr=0.05, **options)
        for step in range(3):
            optimizer.zero_grad()
            for part in range(optimizer.accumulation_steps):
                x, target = batch(10 * step + part)
                output = model(x)
                optimizer.form_statistics(output)
                (functional.cross_entropy(output, target) / optimizer.accumulation_steps).backward()
                x.zero_()
            optimizer.step()
        trained.append([*model.parameters(), *statistics(optimizer)])
    assert all(map(torch.equal, trained[0], trained[1])) and all(map(torch.equal, trained[0], trained[2]))


def test_no_more_gradients_are_held_than_there_is_room_for(monkeypatch):
    model = network()
    optimizer = KFAC(model, lr=0.05)
    delivered = []
    optimizer._recorder._arrive = lambda batches: delivered[-1].append(len(batches))
    for room in (-1, 12 * 1500, recorder.HELD):
        monkeypatch.setattr(recorder, "HELD", room)
        delivered.append([])
        functional.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    at_once, some, together = delivered
    assert at_once == [1, 1, 1] and together == [3] and len(some) == 2 and sum(some) == 3


@pytest.mark.parametrize("drop", [lambda o, s: o.zero_grad(), lambda o, s: o.load_state_dict(s)], ids=["zero", "load"])
def test_a_backward_pass_that_fails_leaves_nothing(drop):
    model, other = network(), network()
    model[1].eval(), other[1].eval()
    optimizer, plain = KFAC(model, lr=0.05), KFAC(other, lr=0.05)
    train(model, optimizer, range(1)), train(other, plain, range(1))
    saved, output = optimizer.state_dict(), model[0](batch(5)[0])
    output.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        functional.cross_entropy(model[1:](output), batch(5)[1]).backward()
    assert optimizer._recorder._held
    drop(optimizer, saved)
    assert not optimizer._recorder._held
    weights = train(model, optimizer, range(1, 3))
    assert all(map(torch.equal, weights, train(other, plain, range(1, 3))))


def test_one_forward_pass_is_differentiated_once():
    model = network()
    KFAC(model, lr=0.05)
    loss = functional.cross_entropy(model(batch(0)[0]), batch(0)[1])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="4: one forward pass was differentiated twice"):
        loss.backward()


def test_two_forward_passes_of_one_loss_are_refused():
    model = network()
    optimizer = KFAC(model, lr=0.05)
    (functional.cross_entropy(model(batch(0)[0]), batch(0)[1]) + model(batch(1)[0]).square().mean()).backward()
    with pytest.raises(FloatingPointError, match="were formed 2 times in a step of accumulation_steps=1"):
        optimizer.step()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_graph_of_the_gradients_may_be_kept(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(blocked_cholesky, "INVERTED", 3)
    trained = []
    for keep in (False, True):
        model = network()
        optimizer = KFAC(model, lr=0.05)
        functional.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward(create_graph=keep)
        optimizer.step()
        trained.append([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(*trained, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_statistics_that_stay_the_same_are_formed_ever_more_rarely(decay):
    model = network()
    model[1].eval()
    optimizer = KFAC(model, lr=0.0, statistics_interval="adaptive", statistics_decay=decay)
    due = []
    for step in range(20):
        due += [step] if len(optimizer._due()) == len(optimizer.clocks) else []
        train(model, optimizer, range(1))
    assert due == [0, 1, 2, 4, 7, 12]


@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
def test_what_stands_above_the_diagonals_is_neither_read_nor_saved(inverse, monkeypatch):
    monkeypatch.setattr(blocked_cholesky, "INVERTED", 3)
    model, other = network(), network()
    model[1].eval(), other[1].eval()
    options = {"lr": 0.05, "statistics_interval": "adaptive", "similarity": 0.5, "normalization": "full"}
    options |= {"inverse": inverse}
    optimizer, plain = KFAC(model, **options), KFAC(other, **options)
    for step in range(5):
        for state in optimizer.curvature.states.values():
            kept = [*zip(state.statistics, state.symmetric, strict=True)]
            kept += [(tensor, state.symmetric[k]) for k, of_k in enumerate(state.before) for tensor in of_k]
            for tensor, symmetric in kept:
                if symmetric and tensor is not None:
                    tensor.copy_(lower_alone(tensor))
        weights = train(model, optimizer, range(step, step + 1))
        assert all(map(torch.equal, weights, train(other, plain, range(step, step + 1))))
    for saved in optimizer.state_dict()["kfac"]["blocks"].values():
        tensors = [*saved["statistics"], *saved["inverse"], *(tensor for of_k in saved["before"] for tensor in of_k)]
        assert all(tensor.isfinite().all() for tensor in tensors)


def test_nothing_is_formed_without_gradients():
    model = network()
    optimizer = KFAC(model, lr=0.1)
    with torch.no_grad():
        model(batch(0)[0])
    model(batch(0)[0])
    assert not optimizer._gathering.formed


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", -1.0),
        ("momentum", 1.0),
        ("damping", -1e-3),
        ("statistics_decay", 1.0),
        ("statistics_interval", 0),
        ("statistics_interval", "often"),
        ("inverse_interval", 0),
        ("accumulation_steps", 0),
        ("fisher", "true"),
        ("momentum_rule", "nesterov"),
        ("rescale_weights", True),
    ],
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        KFAC(network(), **({"lr": 0.1} | {option: value}))


@pytest.mark.parametrize("option", ["normalization", "inverse"])
def test_unknown_rules_are_refused_with_those_there_are(option):
    with pytest.raises(ValueError, match=r"one of .* is wanted, not 'none'"):
        KFAC(network(), lr=0.1, **{option: "none"})


def test_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameter"):
        KFAC(nn.ReLU(), lr=0.1)


@pytest.mark.parametrize("options", [{}, {"statistics_decay": 0.0}], ids=["averaged", "replaced"])
def test_a_block_holds_its_factors_and_their_inverses_and_no_third_copy(options):
    """Steps that renew an inverse form the new statistics in the memory of the old one."""
    model = network()
    optimizer = KFAC(model, lr=0.05, **options)
    for step in range(3):
        train(model, optimizer, range(step, step + 1))
        assert not optimizer._gathering.sums and not optimizer.curvature._spare
    optimizer.zero_grad()
    functional.cross_entropy(model(batch(3)[0]), batch(3)[1]).backward()
    assert not any(state.inverse for state in optimizer.curvature.states.values())
    assert not optimizer.curvature._spare


@pytest.mark.parametrize("options", [{}, {"inverse": "eigen"}, {"inverse_interval": 2}], ids=str)
def test_a_backward_pass_that_is_dropped_loses_no_inverse(options):
    model, other = network(), network()
    model[1].eval(), other[1].eval()
    optimizer, plain = KFAC(model, lr=0.05, **options), KFAC(other, lr=0.05, **options)
    for seed in range(4):
        optimizer.zero_grad()
        functional.cross_entropy(model(batch(seed + 9)[0]), batch(seed)[1]).backward()
        weights = train(model, optimizer, range(seed, seed + 1))
        assert all(map(torch.equal, weights, train(other, plain, range(seed, seed + 1))))
        assert all(state.inverse for state in optimizer.curvature.states.values())
