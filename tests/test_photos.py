"""The photos in installed packages, where they are and where they are not."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from PIL import Image

from training.data import DataError
from training.photos import PHOTOS, find_photo, write_photos

of_all = importlib.util.find_spec


def without_skimage(module: str) -> ModuleSpec | None:
    return None if module == "skimage" else of_all(module)


def test_every_photo_is_larger_than_what_a_backbone_takes() -> None:
    for name in PHOTOS:
        with Image.open(find_photo(name)) as photo:
            assert min(photo.size) > 224, name
            assert photo.mode == "RGB"


def test_lack_of_a_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", without_skimage)

    message = "^scikit-image must be installed for the photo cat, got none: pip install scikit-image$"
    with pytest.raises(DataError, match=message):
        find_photo("cat")


def test_lack_of_a_photo_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PHOTOS, "moon", ("scikit-learn", "sklearn", "datasets/images/moon.jpg"))

    message = "^scikit-learn must have the photo moon, got no .*sklearn/datasets/images/moon.jpg: install another"
    with pytest.raises(DataError, match=message):
        find_photo("moon")


def test_what_is_there_is_written_and_the_rest_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", without_skimage)

    files = write_photos(tmp_path / "photos")

    assert files == [tmp_path / "photos" / "temple.jpg", tmp_path / "photos" / "dahlia.jpg"]
    assert files[0].read_bytes() == find_photo("temple").read_bytes()
    assert capsys.readouterr().err.count("scikit-image must be installed for the photo ") == 3
