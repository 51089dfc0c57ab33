import pytest

from kinji.errors import KinjiError
from kinji.workflow import imagenet
from kinji.workflow.imagenet import list_part, verify_imagenet


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two classes, two images to train on and one to validate each."""
    monkeypatch.setattr(imagenet, "CLASSES", 2)
    monkeypatch.setattr(imagenet, "IMAGES", {"train": 4, "val": 2})
    for k, name in enumerate(("n01440764", "n15075141")):
        for part in ("train", "val"):
            (tmp_path / part / name).mkdir(parents=True)
        for image in (f"{name}_1.JPEG", f"{name}_22.JPEG"):
            (tmp_path / "train" / name / image).write_bytes(b"x" * (k + 1))
        (tmp_path / "val" / name / f"ILSVRC2012_val_0000000{k}.JPEG").write_bytes(b"")
    return tmp_path


def test_a_whole_folder_passes_and_its_checksum_sees_names_and_sizes(folder):
    train, val = verify_imagenet(folder)
    assert (train.images, train.classes, val.images, val.classes) == (4, 2, 2, 2)
    assert verify_imagenet(folder)[0].sha256 == train.sha256
    (folder / "train/n01440764/n01440764_1.JPEG").write_bytes(b"longer")
    assert verify_imagenet(folder)[0].sha256 != train.sha256


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("train/n01440764/n15075141_1.JPEG", "is no image of ILSVRC2012"),
        ("train/n01440764/n01440764_1.jpg", "is no image of ILSVRC2012"),
        ("val/n01440764/n01440764_1.JPEG", "is no image of ILSVRC2012"),
        ("train/n01440764/n01440764_3.JPEG", r"train/ has 5 images in 2 classes, not 4 in 2"),
    ],
)
def test_what_does_not_belong_is_named(folder, path, message):
    (folder / path).write_bytes(b"")
    with pytest.raises(KinjiError, match=message):
        verify_imagenet(folder)


def test_what_is_missing_is_named(folder):
    (folder / "val/n15075141/ILSVRC2012_val_00000001.JPEG").unlink()
    with pytest.raises(KinjiError, match=r"val/ has 1 images in 1 classes, not 2 in 2"):
        verify_imagenet(folder)
    with pytest.raises(KinjiError, match=r"cannot list .*nowhere"):
        list_part(folder / "nowhere", "train")
