import copy
import hashlib
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from kinji.training import (
    Fold,
    Images,
    Reading,
    ResidualNetwork,
    Schedule,
    build_optimizer,
    digits_fold,
    evaluate,
    train,
)


@pytest.fixture(scope="module")
def fold() -> Fold:
    return digits_fold(0, training_images=256)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(
    fold: Fold,
    *,
    optimizer: str = "sgd",
    epochs: int = 3,
    batch_size: int = 64,
    lr: float = 0.1,
    seed: int = 0,
    read_every: int | None = None,
) -> tuple[list[Reading], nn.Module]:
    torch.manual_seed(seed)
    model = ResidualNetwork((4, 8))
    schedule = Schedule(peak_rate=lr, peak_momentum=0.9, end_epoch=epochs)
    stepper = build_optimizer(optimizer, model, lr=lr, momentum=0.9)
    parts = {"training": fold.train, "validation": fold.validation}
    torch.seed()  # the order of the images comes from the run's own seed, not from the global state
    return list(
        train(model, stepper, schedule, **parts, epochs=epochs, batch_size=batch_size, read_every=read_every, seed=seed)
    ), model


def weights_hash(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


@pytest.mark.parametrize("optimizer", ["sgd", "kfac"])
def test_a_run_is_reproducible_to_the_bit(fold: Fold, optimizer: str) -> None:
    (first, model), (second, again) = (run(fold, optimizer=optimizer, lr=0.02) for _ in range(2))
    assert first == second
    assert weights_hash(model) == weights_hash(again)
    assert run(fold, optimizer=optimizer, lr=0.02, seed=1)[0] != first


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("kfac", 0.02)])
def test_a_small_network_learns_the_digits(optimizer: str, lr: float) -> None:
    fold = digits_fold(1, training_images=1024)
    epochs, model = run(fold, optimizer=optimizer, lr=lr, epochs=5)
    _, correct = evaluate(model, fold.test)
    assert correct / len(fold.test) > 0.7  # one in ten by chance
    assert epochs[-1].training_loss < epochs[0].training_loss


@pytest.mark.parametrize(("batch_size", "steps"), [(64, 4), (256, 1), (100, 3)])
def test_an_epoch_takes_every_image_once(fold: Fold, batch_size: int, steps: int) -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]) if module.training else None)
    schedule = Schedule(peak_rate=1e-9, peak_momentum=0.0, end_epoch=2)  # the weights stay as they are
    optimizer = build_optimizer("sgd", model, lr=1e-9, momentum=0.0)
    parts = {"training": fold.train, "validation": fold.validation}
    epochs = list(train(model, optimizer, schedule, **parts, epochs=2, batch_size=batch_size))
    loss, _ = evaluate(model, fold.train, label_smoothing=0.1)
    if len(fold.train) % batch_size == 0:  # the mean over batches is the mean over images
        assert [epoch.training_loss for epoch in epochs] == pytest.approx([loss, loss], rel=1e-5)
    assert [epoch.iteration for epoch in epochs] == [steps, 2 * steps]
    for half in (seen[:steps], seen[steps:]):
        torch.testing.assert_close(torch.cat(half).sum(0), fold.train.pixels_NCHW.sum(0), rtol=0, atol=1e-3)
    assert not torch.equal(seen[0], seen[steps])


def test_the_loop_is_gradient_descent_on_the_smoothed_objective(fold: Fold) -> None:
    """Two full-batch steps without momentum, against the gradient written out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    expected = copy.deepcopy(model)
    train_part = Images(fold.train.pixels_NCHW.double(), fold.train.labels_N, fold.train.positions_N)
    validation = Images(fold.validation.pixels_NCHW.double(), fold.validation.labels_N, fold.validation.positions_N)
    schedule = Schedule(peak_rate=0.5, peak_momentum=0.0, end_epoch=2)
    optimizer = build_optimizer("sgd", model, lr=0.5, momentum=0.0)
    list(train(model, optimizer, schedule, training=train_part, validation=validation, epochs=2, batch_size=256))
    x_NI = train_part.pixels_NCHW.flatten(1)
    smoothed_NK = 0.9 * nn.functional.one_hot(train_part.labels_N, 10).double() + 0.01
    layer = expected[1]
    for epoch in (0.25, 0.75):  # the middles of the two steps, as shares of the budget
        residual_NK = (layer(x_NI).softmax(1) - smoothed_NK).detach() / len(x_NI)
        with torch.no_grad():
            layer.weight -= 0.5 * (1 - epoch) * residual_NK.T @ x_NI
            layer.bias -= 0.5 * (1 - epoch) * residual_NK.sum(0)
    torch.testing.assert_close(model[1].weight, layer.weight, rtol=1e-12, atol=1e-14)


def test_validation_numbers_are_those_of_the_running_statistics(fold: Fold) -> None:
    epochs, model = run(fold)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    logits_NK = model(fold.validation.pixels_NCHW)
    accuracy = (logits_NK.argmax(1) == fold.validation.labels_N).float().mean().item()
    assert epochs[-1].validation_accuracy == pytest.approx(accuracy)
    loss = nn.functional.cross_entropy(logits_NK, fold.validation.labels_N, label_smoothing=0.1).item()
    assert epochs[-1].validation_loss == pytest.approx(loss)
    evaluate(model, fold.test)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("batch_size", [0, 257])
def test_a_batch_that_the_training_part_cannot_fill_is_refused(fold: Fold, batch_size: int) -> None:
    with pytest.raises(ValueError, match=r"batch_size must lie in 1\.\.256"):
        run(fold, batch_size=batch_size)


def test_a_run_that_diverges_says_when_and_what_to_lower(fold: Fold) -> None:
    with pytest.raises(FloatingPointError, match=r"in epoch \d+: lower the learning rate \(now"):
        run(fold, lr=1e30)


@pytest.mark.parametrize(
    ("read_every", "iterations"),
    [(None, [3, 6]), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4, 6]), (100, [6])],
)
def test_readings_come_when_asked_and_at_the_end(fold: Fold, read_every: int | None, iterations: list[int]) -> None:
    readings, _ = run(fold, epochs=2, batch_size=100, read_every=read_every)
    assert [reading.iteration for reading in readings] == iterations
    assert [reading.epoch for reading in readings] == [iteration / 3 for iteration in iterations]


def test_reading_more_often_changes_nothing(fold: Fold) -> None:
    (often, model), (seldom, other) = run(fold, epochs=2, read_every=1), run(fold, epochs=2, read_every=4)
    assert weights_hash(model) == weights_hash(other)
    assert (often[-1].validation_loss, often[-1].iteration) == (seldom[-1].validation_loss, seldom[-1].iteration)
    mean = sum(reading.training_loss for reading in often[4:]) / 4
    assert seldom[-1].training_loss == pytest.approx(mean)


def test_readings_further_apart_than_no_step_are_refused(fold: Fold) -> None:
    with pytest.raises(ValueError, match="read_every must be a positive number"):
        run(fold, read_every=0)


def test_readings_are_handed_out_as_they_are_done(fold: Fold) -> None:
    model = ResidualNetwork((4,))
    schedule = Schedule(peak_rate=0.1, peak_momentum=0.9, end_epoch=10**9)
    optimizer = build_optimizer("sgd", model, lr=0.1, momentum=0.9)
    parts = {"training": fold.train, "validation": fold.validation}
    endless = train(model, optimizer, schedule, **parts, epochs=10**9, batch_size=256)
    assert [epoch.epoch for epoch in islice(endless, 2)] == [1, 2]
