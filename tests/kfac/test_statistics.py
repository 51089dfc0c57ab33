"""Kronecker factors and 2 x 2 blocks against loops over the examples."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kinji.kfac.statistics import (
    add_input_factor,
    add_output_factor,
    normalization_gradients,
    unit_wise_fisher,
)

from .triangles import lower_alone, whole

CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "stride": {"kernel_size": 3, "stride": (2, 1), "padding": (1, 2)},
    "dilation": {"kernel_size": (3, 2), "dilation": (1, 2), "stride": 2},
    "same": {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    "circular": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
    "pointwise": {"kernel_size": 1, "bias": False},
}


def kronecker_factors(layer: nn.Linear | nn.Conv2d, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    groups = (layer.groups,) if isinstance(layer, nn.Conv2d) and layer.groups > 1 else ()
    inputs, outputs = layer.weight[0].numel() + (layer.bias is not None), len(layer.weight) // max(1, *groups, 1)
    a, b = (x.new_full((*groups, n, n), torch.nan) for n in (inputs, outputs))
    with torch.no_grad():
        add_input_factor(layer, x, a, fresh=True)
        add_output_factor(layer, g, b, fresh=True)
    return whole(a), whole(b)


def output_gradient(layer: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Gradient of the mean loss by the layer's output, for an arbitrary nonlinear head."""
    output = layer(x)
    output.retain_grad()
    functional.cross_entropy((output.flatten(2).sin().sum(2) if output.ndim > 2 else output), target).backward()
    assert output.grad is not None
    return output.grad


def factors_by_loops(layer: nn.Conv2d, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over examples and positions one outer product at a time; patches come from torch's own convolution."""
    taps = layer.weight[0].numel()
    unit_kernels = torch.eye(taps, dtype=x.dtype).view(taps, *layer.weight.shape[1:])
    patches = layer._conv_forward(x, unit_kernels, None).flatten(2)
    if layer.bias is not None:
        patches = torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)
    m, per_example = len(x), g.flatten(2) * len(x)
    a = sum(torch.outer(p, p) for example in patches for p in example.T) / (m * patches.shape[2])
    b = sum(torch.outer(p, p) for example in per_example for p in example.T) / m
    return a, b


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_convolution_factors_are_mean_over_positions_for_a_and_sum_for_g(options, memory):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, dtype=torch.float64, **options)
    x = torch.randn(5, 3, 8, 7, dtype=torch.float64).to(memory_format=memory)
    g = output_gradient(layer, x, torch.arange(5) % 4)
    for ours, reference in zip(kronecker_factors(layer, x, g), factors_by_loops(layer, x, g), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-14)


def test_groups_have_the_factors_of_convolutions_of_their_own():
    torch.manual_seed(6)
    grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=torch.float64)
    x, g = torch.randn(3, 4, 5, 5, dtype=torch.float64), torch.randn(3, 6, 5, 5, dtype=torch.float64)
    a, b = kronecker_factors(grouped, x, g)
    for k in range(2):
        alone = nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)
        reference = kronecker_factors(alone, x[:, 2 * k : 2 * k + 2], g[:, 3 * k : 3 * k + 3])
        torch.testing.assert_close((a[k], b[k]), reference, rtol=1e-12, atol=1e-14)


def test_operands_in_half_precision_are_rounded_and_sums_are_not():
    layer, x = nn.Linear(4, 2), torch.randn(50, 4)
    exact, rounded, reference = (torch.empty(5, 5) for _ in range(3))
    add_input_factor(layer, x, exact, fresh=True)
    add_input_factor(layer, x, rounded, fresh=True, dtype=torch.bfloat16)
    add_input_factor(layer, x.bfloat16().float(), reference, fresh=True)
    exact, rounded, reference = map(whole, (exact, rounded, reference))
    torch.testing.assert_close(rounded, reference)
    assert not torch.equal(exact, rounded) and (exact - rounded).norm() < 0.01 * exact.norm()


def test_linear_factors_use_the_gradients_of_single_examples():
    torch.manual_seed(1)
    layer, x, target = nn.Linear(6, 4).double(), torch.randn(7, 6, dtype=torch.float64), torch.arange(7) % 4
    a, g = kronecker_factors(layer, x, output_gradient(layer, x, target))
    reference = torch.zeros(4, 4, dtype=torch.float64)
    for example, label in zip(x, target, strict=True):
        alone = output_gradient(layer, example[None], label[None])[0]
        reference += torch.outer(alone, alone) / 7
    homogeneous = torch.cat([x, torch.ones(7, 1)], dim=1)
    torch.testing.assert_close(g, reference, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(a, homogeneous.T @ homogeneous / 7, rtol=1e-12, atol=1e-15)


def test_linear_layer_on_sequences_is_a_pointwise_convolution():
    torch.manual_seed(2)
    linear, convolution = nn.Linear(5, 3).double(), nn.Conv2d(5, 3, 1).double()
    x, g = torch.randn(4, 6, 5, dtype=torch.float64), torch.randn(4, 6, 3, dtype=torch.float64)
    images = (tensor.transpose(1, 2)[..., None] for tensor in (x, g))
    pairs = zip(kronecker_factors(linear, x, g), kronecker_factors(convolution, *images), strict=True)
    for on_sequence, on_image in pairs:
        torch.testing.assert_close(on_sequence, on_image, rtol=1e-12, atol=1e-14)


def test_one_example_makes_the_kronecker_product_the_exact_block():
    torch.manual_seed(3)
    layer, x = nn.Linear(6, 4).double(), torch.randn(1, 6, dtype=torch.float64)
    a, g = kronecker_factors(layer, x, output_gradient(layer, x, torch.tensor([2])))
    gradient = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1).flatten()
    torch.testing.assert_close(torch.kron(g, a), torch.outer(gradient, gradient), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 5)], ids=["flat", "sequence", "image"])
def test_unit_wise_blocks_square_before_the_mean(training, shape):
    torch.manual_seed(4)
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    layer = kind(3).double()
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 2)
    x, g = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean, var = (x.mean(axes), x.var(axes, correction=0)) if training else (layer.running_mean, layer.running_var)
    ours = unit_wise_fisher(*normalization_gradients(layer, x, g, training))
    for channel in range(3):
        normalized = (x[:, channel] - mean[channel]) / (var[channel] + layer.eps).sqrt()
        scale = 6 * (g[:, channel] * normalized).flatten(1).sum(1) if x.ndim > 2 else 6 * g[:, channel] * normalized
        shift = 6 * g[:, channel].reshape(6, -1).sum(1)
        reference = torch.stack([(scale**2).mean(), (scale * shift).mean(), (shift**2).mean()])
        torch.testing.assert_close(ours[:, channel], reference, rtol=1e-12, atol=1e-14)


def test_factors_add_up_over_calls():
    layer, x, g = (
        nn.Linear(3, 2).double(),
        torch.randn(4, 3, dtype=torch.float64),
        torch.ones(4, 2, dtype=torch.float64),
    )
    once = kronecker_factors(layer, x, g)
    sums = [lower_alone(factor) for factor in once]
    add_input_factor(layer, x, sums[0], fresh=False)
    add_output_factor(layer, g, sums[1], fresh=False)
    torch.testing.assert_close([whole(factor) for factor in sums], [2 * factor for factor in once])
