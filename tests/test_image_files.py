"""Images that stay in their files: selections, batches, and how much is decoded at a time."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from serving.bundle import InputSpec
from serving.errors import ImageError
from serving.preprocess import read_image, read_open_image
from training import image_files
from training.image_files import ImageFiles, decode_files, digests_of, in_memory

SPEC = InputSpec(channels=3, height=8, width=8)


@pytest.fixture
def images(tmp_path: Path) -> ImageFiles:
    """50 images of noise."""
    rng = np.random.default_rng(0)
    names = tuple(f"{number}.png" for number in range(50))
    for name in names:
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(tmp_path / name)
    return ImageFiles(
        tmp_path, names, SPEC, np.arange(800, dtype=np.uint8).reshape(50, 16), np.zeros((50, 192), np.float16)
    )


def pixels_of(images: ImageFiles) -> np.ndarray:
    return np.stack([read_image((images.folder / name).read_bytes(), SPEC) for name in images.names])


def test_batches_are_what_a_server_reads(images: ImageFiles) -> None:
    batches = list(images.split(16))

    assert [len(batch) for batch in batches] == [16, 16, 16, 2]
    np.testing.assert_array_equal(torch.cat(batches), pixels_of(images))
    np.testing.assert_array_equal(in_memory(images), pixels_of(images))


def test_selection_is_in_the_order_of_its_positions(images: ImageFiles) -> None:
    positions = torch.tensor([7, 3, 3, 49])

    chosen = images[positions]

    assert chosen.shape == (4, 3, 8, 8)
    np.testing.assert_array_equal(in_memory(chosen), pixels_of(images)[positions])
    np.testing.assert_array_equal(digests_of(chosen), images.digests[positions])
    assert in_memory(images[positions[:0]]).shape == (0, 3, 8, 8)


def test_tensor_is_in_memory_already() -> None:
    tensor = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)

    assert in_memory(tensor) is tensor


def test_file_that_has_changed_since_is_named(images: ImageFiles) -> None:
    (images.folder / "20.png").write_bytes(b"")

    with pytest.raises(ImageError) as caught:
        list(images.split(16))

    assert str(caught.value) == (
        f"{images.folder}/20.png must stay as it was when the command began, got image must not be empty, got 0 bytes: "
        "leave the folder alone until it is done"
    )


def test_only_a_few_images_wait_for_whoever_takes_them(images: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "cores", lambda: 2)
    asked: list[str] = []

    def files() -> object:
        for name in images.names:
            asked.append(name)
            yield images.folder / name

    decoded = decode_files(files(), SPEC)  # type: ignore[arg-type]
    for taken in range(1, 21):
        next(decoded)
        assert len(asked) == image_files.AHEAD * 2 + taken
    decoded.close()  # type: ignore[attr-defined]


def test_large_images_are_decoded_one_at_a_time(images: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of 108 pixels count more than 200; of four threads only one decodes."""
    monkeypatch.setattr(image_files, "cores", lambda: 4)
    monkeypatch.setattr(image_files, "PIXELS_AT_ONCE", 200)
    inside, most, lock = 0, 0, threading.Lock()

    def noting(opened: object, spec: InputSpec) -> np.ndarray:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            return read_open_image(opened, spec)  # type: ignore[arg-type]
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(image_files, "read_open_image", noting)

    np.testing.assert_array_equal(in_memory(images), pixels_of(images))
    assert most == 1


def test_image_larger_than_all_that_may_be_decoded_at_once_is_decoded(
    images: ImageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "PIXELS_AT_ONCE", 10)

    np.testing.assert_array_equal(in_memory(images), pixels_of(images))
