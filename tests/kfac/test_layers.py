"""Normalizations, embeddings and attention: first steps against dense matrices of per-example gradients."""

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kinji.kfac import KFAC

from .transformer import learn
from .triangles import whole

DAMPING = 1e-2


def per_example_gradients(model: nn.Module, layer: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Gradients of each example's loss by the layer's parameters, flattened, (examples, parameters)."""
    rows = []
    for k in range(len(x)):
        loss = functional.cross_entropy(model(x[k : k + 1]), target[k : k + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(layer.parameters()))]))
    return torch.stack(rows)


def first_step(model: nn.Module, layer: nn.Module, x: Tensor, target: Tensor, **options: object) -> Tensor:
    """The layer's direction in the first step of an optimizer with learning rate 1."""
    before = torch.cat([p.detach().flatten().clone() for p in layer.parameters()])
    optimizer = KFAC(model, lr=1.0, damping=DAMPING, **options)
    optimizer.zero_grad()
    output = model(x)
    optimizer.form_statistics(output)
    functional.cross_entropy(output, target).backward()
    optimizer.step()
    return before - torch.cat([p.detach().flatten() for p in layer.parameters()])


def masks(n: int, count: int) -> dict[str, Tensor]:
    """Which entries of the Fisher matrix of all scales, then all shifts, each rule keeps."""
    size = n * count
    blocks = torch.eye(n, dtype=torch.bool).repeat(count, count)
    return {"unit-wise": blocks, "diagonal": torch.eye(size, dtype=torch.bool), "full": torch.ones(size, size).bool()}


NORMALIZATIONS = {
    "batch": (lambda: nn.BatchNorm2d(3).eval(), (6, 3, 4, 4)),
    "batch flat": (lambda: nn.BatchNorm1d(4).eval(), (6, 4)),
    "layer": (lambda: nn.LayerNorm(4), (6, 5, 4)),
    "layer without shift": (lambda: nn.LayerNorm(4, bias=False), (6, 5, 4)),
    "layer of two dimensions": (lambda: nn.LayerNorm((2, 3)), (6, 2, 3)),
}


@pytest.mark.parametrize("rule", ["unit-wise", "diagonal", "full"])
@pytest.mark.parametrize(("build", "shape"), NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_normalization_blocks_are_the_masked_dense_matrix(rule, build, shape):
    torch.manual_seed(0)
    layer = build()
    width = torch.Size(shape[1:]).numel()
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 3)).double()
    x, target = torch.randn(shape, dtype=torch.float64), torch.arange(6) % 3
    rows = per_example_gradients(model, layer, x, target)
    n = layer.weight.numel()
    fisher = rows.T @ rows / len(rows) * masks(n, rows.shape[1] // n)[rule]
    reference = torch.linalg.solve(fisher + 2 * DAMPING * torch.eye(len(fisher), dtype=fisher.dtype), rows.mean(0))
    ours = first_step(model, layer, x, target, normalization=rule, normalization_damping=2.0)
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", [None, 2])
def test_embedding_is_a_linear_layer_of_one_hot_inputs(padding):
    torch.manual_seed(1)
    embedding = nn.Embedding(7, 3, padding_idx=padding)
    model = nn.Sequential(embedding, nn.Flatten(), nn.Linear(12, 3)).double()
    x, target = torch.randint(0, 7, (6, 4)), torch.arange(6) % 3
    seen: list[Tensor] = []
    handle = embedding.register_forward_hook(lambda *call: seen.append(call[-1]))
    (g,) = torch.autograd.grad(functional.cross_entropy(model(x), target), seen)
    handle.remove()
    kept = (x != padding).double() if padding is not None else torch.ones_like(x).double()
    one_hot = functional.one_hot(x, 7).double() * kept[..., None]
    a_factor = torch.einsum("msi,msj->ij", one_hot, one_hot) / x.numel()
    g_factor = 6 * torch.einsum("mso,msp->op", g * kept[..., None], g * kept[..., None])
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(x), target), embedding.weight)
    pi = ((a_factor.trace() / 7) / (g_factor.trace() / 3)).sqrt()
    dense = torch.kron(a_factor + pi * 0.1 * torch.eye(7).double(), g_factor + 0.1 / pi * torch.eye(3).double())
    ours = first_step(model, embedding, x, target)
    torch.testing.assert_close(ours, torch.linalg.solve(dense, gradient.flatten()), rtol=1e-9, atol=1e-12)


def test_one_image_and_no_damping_make_the_block_of_a_linear_layer_exact():
    torch.manual_seed(2)
    layer, x, target = nn.Linear(4, 3).double(), torch.randn(1, 4, dtype=torch.float64), torch.tensor([1])
    optimizer = KFAC(layer, lr=0.0)
    functional.cross_entropy(layer(x), target).backward()
    gradient = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1).flatten()
    optimizer.step()
    a, g = map(whole, next(iter(optimizer.curvature.states.values())).statistics)
    torch.testing.assert_close(torch.kron(g, a), torch.outer(gradient, gradient), rtol=1e-12, atol=1e-15)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()


def statistics(fisher: str, x: Tensor, target: Tensor) -> dict[str, list[Tensor]]:
    model = network()
    optimizer = KFAC(model, lr=0.0, fisher=fisher, damping=DAMPING)
    output = model(x)
    optimizer.form_statistics(output)
    functional.cross_entropy(output, target).backward()
    optimizer.step()
    states = optimizer.curvature.states.items()
    return {
        block.name: [whole(s) if only else s for s, only in zip(state.statistics, block.symmetric, strict=True)]
        for block, state in states
    }


def test_exact_fisher_is_the_generalized_gauss_newton_matrix():
    """G of each layer from its Jacobian and the Hessian of softmax cross-entropy, diag(p) - p p^T."""
    x, target = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    ours, model = statistics("exact", x, target), network()
    for name, layer in (("0", model[0]), ("3", model[3])):
        g = torch.zeros(layer.out_features, layer.out_features, dtype=torch.float64)
        for example in x:
            tail = model[int(name) + 1 :]
            at = model[: int(name) + 1](example[None]).detach()[0]
            jacobian = torch.autograd.functional.jacobian(tail, at)
            p = tail(at).softmax(-1)
            g += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / len(x)
        torch.testing.assert_close(ours[name][1], g, rtol=1e-10, atol=1e-13)


def test_sampled_fisher_has_the_exact_one_as_its_mean_and_empirical_is_another():
    x, target = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    exact, empirical = statistics("exact", x, target), statistics("empirical", x, target)
    many = x.repeat(4000, 1)
    sampled = statistics("sampled", many, torch.zeros(len(many), dtype=torch.int64))
    for name in exact:
        for one, other in zip(sampled[name], exact[name], strict=True):
            assert (one - other).norm() < 0.05 * other.norm()
        assert (empirical[name][-1] - exact[name][-1]).norm() > 0.1 * exact[name][-1].norm()


def test_normal_likelihood_gives_the_jacobian_of_the_means():
    torch.manual_seed(4)
    layer, x = nn.Linear(4, 3).double(), torch.randn(6, 4, dtype=torch.float64)
    for fisher, tolerance in (("exact", 1e-12), ("sampled", 0.1)):
        optimizer = KFAC(layer, lr=0.0, fisher=fisher, likelihood="normal")
        many = x.repeat(1 if fisher == "exact" else 1000, 1)
        optimizer.form_statistics(output := layer(many))
        output.square().mean().backward()
        optimizer.step()
        _, g = next(iter(optimizer.curvature.states.values())).statistics
        torch.testing.assert_close(whole(g), torch.eye(3, dtype=torch.float64), rtol=0, atol=tolerance)
        layer._forward_hooks.clear()


def test_sampled_fisher_asks_for_its_statistics_by_name():
    model = network()
    optimizer = KFAC(model, lr=0.1, fisher="sampled")
    model(torch.randn(2, 4, dtype=torch.float64)).sum().backward()
    with pytest.raises(FloatingPointError, match=r"call form_statistics\(output\)"):
        optimizer.step()
    exact = KFAC(model, lr=0.1, fisher="exact")
    with pytest.raises(ValueError, match="needs an output"):
        exact.form_statistics(model(torch.randn(2, 3, 4, dtype=torch.float64)))


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_a_transformer_learns_to_copy_its_neighbours(fisher, caplog):
    with caplog.at_level(logging.WARNING):
        _, losses = learn(steps=80, fisher=fisher)
    assert caplog.text.rstrip().endswith("updated by the first-order rule: embedding.weight")
    assert losses[0] > 2 and losses[-1] < 0.2


def test_attention_that_calls_no_layer_is_left_to_the_first_order_rule(caplog):
    model = nn.MultiheadAttention(4, 2)
    with caplog.at_level(logging.WARNING):
        optimizer = KFAC(model, lr=0.1)
    assert "in_proj_weight, in_proj_bias, out_proj.weight, out_proj.bias" in caplog.text
    x = torch.randn(3, 2, 4)
    model(x, x, x)[0].square().mean().backward()
    optimizer.step()
