"""Counts against closed forms and a small net counted by hand."""

import pytest
import torch
from torch import nn

from kinji.cost.counts import NetworkCounts, count, count_layers, triangle
from kinji.cost.networks import NETWORKS
from kinji.kfac.packing import packed_lengths


def small_net():
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),  # 2 images of 8 x 8: 128 positions, 27 + 1 inputs
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 5, 1, stride=2, bias=False),  # 32 positions, 4 inputs
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 7),
        )


def test_a_small_net_counted_by_hand():
    first, norm, second, last = count_layers(small_net(), (2, 3, 8, 8))
    assert (first.inputs, first.outputs, first.rows, first.patches) == (28, 4, 128, 128 * 27)
    assert (second.inputs, second.outputs, second.rows, second.patches) == (4, 5, 32, 128)
    assert (last.inputs, last.outputs, last.rows, last.patches) == (6, 7, 2, 0)
    assert [layer.forward_flops for layer in (first, norm, second, last)] == [2 * 128 * 27 * 4, 0, 2 * 32 * 4 * 5, 140]
    assert first.factor_flops == 2 * 128 * (28 * 28 + 4 * 4)
    assert last.precondition_flops == 2 * (7 * 7 * 6 + 7 * 6 * 6)
    assert (norm.channels, norm.elements, norm.parameters) == (4, 2 * 4 * 64, 8)
    assert [layer.parameters for layer in (first, second, last)] == [27 * 4 + 4, 20, 42]


def test_bytes_of_the_small_net():
    net = NetworkCounts("small", 2, 8, count_layers(small_net(), (2, 3, 8, 8)))
    assert net.gradient_bytes == 4 * (112 + 8 + 20 + 42)
    assert net.input_statistic_bytes == 4 * (28 * 29 + 4 * 5 + 6 * 7) / 2
    assert net.gradient_statistic_bytes("unit-wise") == 4 * (10 + 15 + 28 + 3 * 4)
    assert net.gradient_statistic_bytes("full") == 4 * (10 + 15 + 28 + 8 * 9 / 2)
    assert net.patch_bytes == 2 * 4 * (128 * 27 + 128)


def test_resnet_50_as_published():
    net = count("resnet50", batch=1, size=224)
    assert net.forward_flops == pytest.approx(2 * 4.09e9, rel=0.005)  # torchvision: 4.09 G multiply-adds
    assert net.gradient_bytes == 4 * 25_557_032
    assert sum(layer.inputs > 0 for layer in net.layers) == 54
    assert sum(layer.channels > 0 for layer in net.layers) == 53


def test_a_bert_block_by_its_closed_form():
    width, tokens, sequences = 768, 128, 3
    net = count("bert-base-block", batch=sequences, size=tokens)
    products, attention = 2 * 12 * width**2, 4 * tokens * width
    assert net.forward_flops == sequences * tokens * (products + attention)
    assert net.gradient_bytes == 4 * (12 * width**2 + 9 * width + 4 * width)
    assert count("bert-base", sequences, tokens).forward_flops == 12 * net.forward_flops


@pytest.mark.parametrize("network", NETWORKS)
def test_work_is_proportional_to_the_batch_and_statistics_do_not_depend_on_it(network):
    one, four = (count(network, batch, 64) for batch in (1, 4))
    assert four.forward_flops == 4 * one.forward_flops and four.factor_flops == 4 * one.factor_flops
    assert four.normalization_bytes == 4 * one.normalization_bytes
    assert four.input_statistic_bytes == one.input_statistic_bytes and four.gradient_bytes == one.gradient_bytes


def test_a_triangle_is_what_the_optimizer_packs():
    sizes = [1, 2, 7, 64]
    assert [triangle(n) for n in sizes] == packed_lengths([torch.empty(n, n) for n in sizes], symmetric=True)


@pytest.mark.parametrize(
    ("network", "batch", "size", "message"),
    [
        ("resnet5", 1, 224, "Did you mean 'resnet50'"),
        ("resnet50", 0, 224, "at least 1"),
        ("resnet50", 1, -1, "at least 1"),
    ],
)
def test_what_cannot_be_counted_is_named(network, batch, size, message):
    with pytest.raises(ValueError, match=message):
        count(network, batch, size)


def test_convolutions_in_groups_are_refused():
    with torch.device("meta"):
        model = nn.Conv2d(4, 4, 3, groups=4)
    with pytest.raises(ValueError, match="groups"):
        count_layers(model, (1, 4, 8, 8))
