"""However a batch is cut and its numbers kept, the step is that of the whole batch."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kinji.training import Schedule, build_optimizer, synchronize_batch_norm, train
from kinji.training.plan import Plan

from ..kfac.distributed import network as any_layer
from .distributed import losses
from .runs import images, run


def plan(**changes) -> Plan:
    standard = {"images": 60, "epochs": 2, "batch_size": 16, "read_every": None, "seed": 3, "rank": 0, "ranks": 1}
    return Plan(**standard | {"micro_batch": None} | changes)


@pytest.mark.parametrize("ranks", [1, 3, 4])
@pytest.mark.parametrize("micro_batch", [None, 1, 3])
@pytest.mark.parametrize("batch_size", [16, 25, 60])
def test_ranks_and_micro_batches_share_each_batch_evenly(ranks, micro_batch, batch_size):
    alone = plan(batch_size=batch_size)
    order = [torch.cat(alone.share(batch)) for batch in torch.arange(60).split(batch_size)]
    for batch in order:
        shares = [
            plan(batch_size=batch_size, rank=rank, ranks=ranks, micro_batch=micro_batch).share(batch)
            for rank in range(ranks)
        ]
        sizes = [len(part) for share in shares for part in share]
        assert torch.equal(torch.cat([part for share in shares for part in share]).sort().values, batch.sort().values)
        assert max(sizes) - min(sizes) <= 1 and len({len(share) for share in shares}) == 1
        assert max(sizes) <= (micro_batch or 60) + (len(batch) % ranks > 0)


@pytest.mark.parametrize("done", [0, 1, 4, 5, 7, 8])
def test_the_order_of_the_images_follows_from_the_steps_done(done):
    part = images(60, seed=1)
    whole, rest = (
        [torch.cat([pixels for pixels, _ in batch.parts]) for batch in plan(micro_batch=5).batches(part, start)]
        for start in (0, done)
    )
    assert len(whole) == 8 and len(rest) == 8 - done
    assert all(map(torch.equal, whole[done:], rest))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 61}, {"micro_batch": 0}, {"read_every": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
        plan(**wrong)


def test_more_ranks_than_images_in_the_last_batch_are_refused():
    with pytest.raises(ValueError, match="has 4 of 60 images, too few for 8 ranks"):
        plan(batch_size=14, ranks=8)


@pytest.mark.parametrize("optimizer", ["sgd", "kfac"])
@pytest.mark.parametrize("micro_batch", [2, 4])
def test_micro_batches_add_up_to_the_batch(optimizer, micro_batch):
    options = {"optimizer": optimizer, "frozen_batch_norm": True} | ({"damping": 0.1} if optimizer == "kfac" else {})
    parts = losses(None, **options, micro_batch=micro_batch)
    assert parts == pytest.approx(losses(None, **options), rel=1e-10, abs=0)


def test_unequal_micro_batches_count_by_their_images():
    """The gradient of one full-batch step on 5 images, in parts of 2, 2 and 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10)).double()
    part, before = images(5, seed=1), model[1].weight.detach().clone()
    cross_entropy(model(part.pixels_NCHW.double()), part.labels_N).backward()
    gradient = model[1].weight.grad.clone()
    schedule = Schedule(peak_rate=1.0, peak_momentum=0.0, end_epoch=1000)
    sizes = {"epochs": 1, "batch_size": 5, "micro_batch": 2, "label_smoothing": 0.0}
    optimizer = build_optimizer("sgd", model, lr=1.0, momentum=0.0)
    list(train(model, optimizer, schedule, training=part, validation=part, **sizes))
    torch.testing.assert_close(before - model[1].weight, schedule.rate(0.5) * gradient, rtol=1e-12, atol=1e-15)


def test_channels_last_is_another_order_in_memory_only():
    options = {"optimizer": "kfac", "damping": 0.1}
    assert losses(None, **options, channels_last=True) == pytest.approx(losses(None, **options), rel=1e-10, abs=0)


@pytest.mark.parametrize("optimizer", ["sgd", "kfac"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_and_is_taken(optimizer, precision):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))
    (weights, near), (others, reference) = (
        run(optimizer, model=reset(model), precision=chosen, micro_batch=6) for chosen in (precision, None)
    )
    assert weights != others
    for ours, theirs in zip(near, reference, strict=True):
        assert ours.training_loss == pytest.approx(theirs.training_loss, rel=0.02)


def reset(model: nn.Module) -> nn.Module:
    torch.manual_seed(4)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return model


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be None"):
        run("sgd", precision=torch.float64)


def test_synchronized_batch_norm_of_one_rank_is_batch_norm_gradients_and_fisher_included():
    from kinji.kfac import KFAC, SerialCommunicator

    outcomes = []
    for synchronize in (False, True):
        model = any_layer().train()
        if synchronize:
            synchronize_batch_norm(model, SerialCommunicator())
        optimizer = KFAC(model, lr=0.1, damping=0.1)
        x = torch.randn(9, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        cross_entropy(model(x), torch.arange(9) % 3).backward()
        optimizer.step()
        outcomes.append(list(model.state_dict().values()))
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
