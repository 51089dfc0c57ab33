import pytest
import torch

from kinji.training import ImageSource, StoredImages


@pytest.fixture
def images() -> StoredImages:
    pixels = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return StoredImages(pixels_NCHW=pixels, labels_N=torch.arange(40) % 7, classes=7, shift=2, flip=True, seed=5)


def ask(images: ImageSource, *numbers: list[int], epoch: int = 0) -> list[torch.Tensor]:
    return [pixels for pixels, _ in images.batches(map(torch.tensor, numbers), epoch=epoch)]


def test_an_image_looks_the_same_in_any_batch_of_an_epoch(images: StoredImages) -> None:
    together = ask(images, list(range(40)), epoch=3)[0]
    apart = torch.cat(ask(images, [39, 1], [0], epoch=3))
    assert torch.equal(apart, together[[39, 1, 0]])
    assert not torch.equal(together, ask(images, list(range(40)), epoch=4)[0])


def test_a_view_is_a_shift_or_a_mirrored_shift_with_repeated_edges(images: StoredImages) -> None:
    seen = set()
    padded = torch.nn.functional.pad((images.pixels_NCHW / 255 - 0.5) / 0.25, (2, 2, 2, 2), mode="replicate")
    for number, view in enumerate(ask(images, list(range(40)))[0]):
        views = {
            (down, right, flip): padded[number, :, down : down + 8, right : right + 8].flip([2] if flip else [])
            for down in range(5)
            for right in range(5)
            for flip in (False, True)
        }
        found = [key for key, expected in views.items() if torch.equal(view, expected)]
        assert len(found) == 1
        seen |= set(found)
    assert {key[2] for key in seen} == {False, True}
    assert len({key[:2] for key in seen}) > 15


def test_without_shift_and_flip_pixels_are_only_normalized(images: StoredImages) -> None:
    still = StoredImages(pixels_NCHW=images.pixels_NCHW, labels_N=images.labels_N, classes=7, mean=0.25, deviation=0.5)
    pixels_BCHW, labels_B = next(still.batches([torch.tensor([3, 9])], epoch=8))
    torch.testing.assert_close(pixels_BCHW * 0.5 + 0.25, images.pixels_NCHW[[3, 9]] / 255)
    assert labels_B.tolist() == [3, 2]
