"""The user's own images: a folder of class folders, whatever else lies in it."""

import io
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from serving.bundle import InputSpec
from serving.decode import decode
from serving.preprocess import read_image, to_input
from training.choice import chosen_recipe
from training.data import DataError, Sources
from training.datasets import load_dataset
from training.image_files import in_memory
from training.recipe import DataSpec
from training.splits import split

FOLDER = DataSpec(name="folder", size=8)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(file: Path, pixels: np.ndarray, **options: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four plain-coloured images in three formats, of different sizes and modes, some nested."""
    root = tmp_path / "photos"
    write_image(root / "dog" / "a.png", np.full((8, 8, 3), (200, 10, 20), np.uint8))
    write_image(root / "dog" / "old" / "b.JPG", np.full((16, 24, 3), (10, 200, 20), np.uint8))
    write_image(root / "cat" / "c.webp", np.full((30, 9, 3), (20, 10, 200), np.uint8))
    write_image(root / "cat" / "d.jpeg", np.full((5, 5), 77, np.uint8))
    (root / ".hidden").mkdir()
    return root


def test_folder_of_class_folders_is_read(folder: Path) -> None:
    dataset = load_dataset(FOLDER, Sources(folder=folder))

    images = in_memory(dataset.images)
    assert dataset.name == "photos"
    assert dataset.files == ("cat/c.webp", "cat/d.jpeg", "dog/a.png", "dog/old/b.JPG")
    assert dataset.name_of(3) == "dog/old/b.JPG"
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset.images.shape == (4, 3, 8, 8) == images.shape
    assert images.dtype == torch.uint8
    assert dataset.test_start is None
    colours = [(20, 10, 200), (77, 77, 77), (200, 10, 20), (10, 200, 20)]
    for image, colour in zip(images, colours, strict=True):
        np.testing.assert_allclose(image.flatten(1).double().mean(1), colour, atol=4)  # JPEG and WebP are lossy
    assert images[2].flatten(1).unique(dim=1).flatten().tolist() == [200, 10, 20]


def test_folder_may_be_read_as_gray_images(folder: Path) -> None:
    spec = DataSpec(name="folder", size=6, channels=1, resize="stretch", background=9)

    dataset = load_dataset(spec, Sources(folder=folder))

    assert dataset.images.shape == (4, 1, 6, 6)
    assert in_memory(dataset.images)[2].unique().tolist() == [round(0.299 * 200 + 0.587 * 10 + 0.114 * 20)]
    assert dataset.input == InputSpec(channels=1, height=6, width=6, resize="stretch", background=9)


def test_resize_rule_of_the_recipe_is_used(tmp_path: Path) -> None:
    """Left third black, the rest white: a centred crop of a 1 x 3 image sees white only at its right."""
    wide = np.full((8, 24), 255, np.uint8)
    wide[:, :8] = 0
    for name in ("a", "b"):
        write_image(tmp_path / name / "wide.png", wide)

    crop, stretch = (
        in_memory(
            load_dataset(DataSpec(name="folder", size=8, channels=1, resize=rule), Sources(folder=tmp_path)).images
        )[0, 0]
        for rule in ("crop", "stretch")
    )

    assert (crop == 255).all()
    assert stretch[0, 0] == 0
    assert stretch[0, -1] == 255


def test_fingerprint_changes_with_an_image_and_with_a_label(folder: Path) -> None:
    before = load_dataset(FOLDER, Sources(folder=folder)).fingerprint()
    assert load_dataset(FOLDER, Sources(folder=folder)).fingerprint() == before
    shutil.copytree(folder, folder.parent / "copy")
    assert load_dataset(FOLDER, Sources(folder=folder.parent / "copy")).fingerprint() == before

    (folder / "cat" / "c.webp").rename(folder / "dog" / "0.webp")  # between the same neighbours
    moved = load_dataset(FOLDER, Sources(folder=folder)).fingerprint()
    write_image(folder / "dog" / "a.png", np.full((8, 8, 3), (200, 10, 21), np.uint8))
    changed = load_dataset(FOLDER, Sources(folder=folder)).fingerprint()

    assert re.fullmatch("[0-9a-f]{64}", before)
    assert len({before, moved, changed}) == 3


# How photos are stored


def pictures() -> dict[str, tuple[Image.Image, str, dict[str, object]]]:
    """Pictures as cameras, scanners and drawing programs store them: name, format and options."""
    colours = Image.fromarray(noise(24, 36, 3))
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = Image.fromarray(noise(24, 36, 4, seed=1))
    return {
        "gray.png": (colours.convert("L"), "PNG", {}),
        "cmyk.jpg": (colours.convert("CMYK"), "JPEG", {}),
        "deep.png": (Image.fromarray(noise(24, 36).astype(np.uint16) * 257), "PNG", {}),
        "palette.png": (colours.quantize(17), "PNG", {}),
        "clear.png": (clear, "PNG", {}),
        "clear.webp": (clear, "WEBP", {"lossless": True}),
        "turned.jpg": (colours, "JPEG", {"exif": turned}),
        "progressive.jpg": (colours, "JPEG", {"progressive": True}),
    }


@pytest.mark.parametrize("name", pictures())
def test_photo_of_any_mode_is_read_as_a_server_reads_it(name: str, folder: Path) -> None:
    picture, kind, options = pictures()[name]
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    (folder / "cat" / f"0-{name}").write_bytes(stream.getvalue())

    dataset = load_dataset(FOLDER, Sources(folder=folder))

    assert dataset.files[0] == f"cat/0-{name}"
    found = in_memory(dataset.images)[0].numpy()
    np.testing.assert_array_equal(found, read_image(stream.getvalue(), dataset.input))
    np.testing.assert_array_equal(found, to_input(decode(stream.getvalue(), channels=3), dataset.input))


def test_photo_beyond_pillows_own_limit_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here of 30 pixels instead of 89 million; one of twice as many would be refused."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)

    dataset = load_dataset(FOLDER, Sources(folder=folder))

    assert "dog/old/b.JPG" in dataset.files


# Folders that are laid out otherwise


def refused(spec: DataSpec, folder: Path | None) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(spec, Sources(folder=folder))
    return str(caught.value)


def test_folder_must_be_named() -> None:
    assert refused(FOLDER, None) == "a folder of class folders must be named with --data FOLDER, got none"


def test_folder_must_be_a_folder(tmp_path: Path) -> None:
    assert refused(FOLDER, tmp_path / "none").endswith(f"got {tmp_path}/none, which is not a folder")


def test_folder_must_hold_two_classes(tmp_path: Path) -> None:
    write_image(tmp_path / "only" / "a.png", noise(8, 8))

    assert refused(FOLDER, tmp_path) == (
        f"{tmp_path} must hold at least 2 class folders, got ['only']: add a folder with images of another class"
    )


def test_images_without_class_folders_are_told_where_to_go(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / f"{number}.png", noise(8, 8))

    assert refused(FOLDER, tmp_path) == (
        f"{tmp_path} must hold a folder of images for each class, got 3 images and no folder: move the images of each "
        f"class into a folder of its own, such as {tmp_path}/cat and {tmp_path}/dog"
    )


def test_splits_are_not_taken_for_classes(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "both" / "train")
    shutil.copytree(folder, folder.parent / "both" / "val")
    both = folder.parent / "both"

    assert refused(FOLDER, both) == (
        f"{both} must hold a folder of images for each class, or train and test with one each, got train, val: "
        f"name one of them, such as --data {both}/val"
    )


def test_train_and_test_are_the_splits_of_a_folder_that_has_them(folder: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(folder, both / "train")
    write_image(both / "test" / "cat" / "new.png", noise(8, 8, 3))
    write_image(both / "test" / "dog" / "new.png", noise(8, 8, 3, seed=1))

    dataset = load_dataset(FOLDER, Sources(folder=both))
    splits = split(dataset, validation=0.5, test=0.2, seed=0)

    assert dataset.classes == ("cat", "dog")
    assert dataset.files[3:] == ("train/dog/old/b.JPG", "test/cat/new.png", "test/dog/new.png")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert splits["test"].tolist() == [4, 5]
    assert chosen_recipe(both) == "images-small"


def test_train_and_test_must_be_of_the_same_classes(folder: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(folder, both / "train")
    shutil.copytree(folder, both / "test")
    (both / "test" / "dog").rename(both / "test" / "wolf")

    assert refused(FOLDER, both) == (
        f"{both}/train and {both}/test must hold the same class folders, got dog, wolf in one alone"
    )


def test_every_class_must_hold_images(folder: Path) -> None:
    (folder / "empty").mkdir()

    assert refused(FOLDER, folder) == (
        f"every class folder of {folder} must hold .png, .jpg, .jpeg, .webp files, got none in ['empty']: "
        "add images, or remove the folder"
    )


def test_folder_whose_name_ends_like_an_image_is_no_image(folder: Path) -> None:
    write_image(folder / "dog" / "album.png" / "e.png", noise(8, 8))

    assert load_dataset(FOLDER, Sources(folder=folder)).labels.tolist() == [0, 0, 1, 1, 1]


# What is left out


def test_files_of_other_kinds_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("notes.txt", "more.TXT", "README", ".DS_Store", "._a.png", "x.heic", "y.heic", "z.gif"):
        (folder / "cat" / name).write_text("not an image")
    (folder / "dog" / ".thumbnails").mkdir()
    write_image(folder / "dog" / ".thumbnails" / "a.png", noise(8, 8))
    write_image(folder / "stray.png", noise(8, 8))

    dataset = load_dataset(FOLDER, Sources(folder=folder))

    assert dataset.files == ("cat/c.webp", "cat/d.jpeg", "dog/a.png", "dog/old/b.JPG")
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        f"{folder}: left out, for only PNG, JPEG and WebP are read: 1 .gif, 2 .heic; convert them to JPEG",
        f"{folder}: left out, for they are no images: 2 .txt, 2 hidden, 1 without a suffix",
        f"{folder}: left out, for they are of no class: 1 beside the class folders; move each into a class folder",
    ]


def test_class_of_unread_types_alone_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "phone").mkdir()
    (folder / "phone" / "a.heic").write_bytes(b"")

    message = refused(FOLDER, folder)

    assert "got none in ['phone']" in message
    assert f"{folder}: left out, for only PNG, JPEG and WebP are read: 1 .heic;" in capsys.readouterr().err


def huge_png() -> bytes:
    """A PNG of 20,000 x 20,000 pixels by its header, and of none by its data."""
    chunks = (
        (b"IHDR", struct.pack(">2I5B", 20_000, 20_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def broken_files() -> dict[str, tuple[bytes, str]]:
    """Contents that are no image, and what is said of them."""
    stream = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(stream, "JPEG")
    return {
        "text.jpg": (b"not a picture", "image must be PNG, JPEG or WebP, got bytes that start with b'not a pi'"),
        "empty.png": (b"", "image must not be empty, got 0 bytes"),
        "short.jpg": (stream.getvalue()[:900], "image must be a whole JPEG image, got a broken one: "),
        "header.png": (b"\x89PNG\r\n\x1a\n but no more", "image must be a whole PNG image, got a broken one: "),
        "huge.png": (huge_png(), "image must have at most 268435456 pixels, got 20000 x 20000"),
    }


@pytest.mark.parametrize("name", broken_files())
def test_broken_file_is_named_and_left_out(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, why = broken_files()[name]
    (folder / "dog" / name).write_bytes(content)

    for _ in range(2):  # read, and known from the index
        dataset = load_dataset(FOLDER, Sources(folder=folder))

        assert dataset.files == ("cat/c.webp", "cat/d.jpeg", "dog/a.png", "dog/old/b.JPG")
        assert dataset.labels.tolist() == [0, 0, 1, 1]
        assert in_memory(dataset.images).shape == (4, 3, 8, 8)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{folder}: 1 of 5 files cannot be read and are left out: dog/{name}: {why}")


def test_first_of_many_broken_files_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        (folder / "cat" / f"{number}.jpg").write_bytes(b"")

    load_dataset(FOLDER, Sources(folder=folder))

    empty = "image must not be empty, got 0 bytes"
    assert capsys.readouterr().err == (
        f"{folder}: 5 of 9 files cannot be read and are left out: "
        f"cat/0.jpg: {empty}; cat/1.jpg: {empty}; cat/2.jpg: {empty}; and 2 more\n"
    )


def test_class_of_broken_files_alone_is_refused(folder: Path) -> None:
    (folder / "bird").mkdir()
    (folder / "bird" / "a.png").write_bytes(b"")

    assert refused(FOLDER, folder) == (
        f"every class folder of {folder} must hold images that can be read, got none in ['bird'] "
        "(bird/a.png: image must not be empty, got 0 bytes): replace the files, or remove the folders"
    )


def test_file_that_may_not_be_opened_is_left_out_until_it_may(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may open any file, so the refusal is made here."""
    locked, read = folder / "dog" / "a.png", Path.read_bytes

    def refusing(file: Path) -> bytes:
        if file == locked:
            raise PermissionError(13, "Permission denied", str(file))
        return read(file)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refusing)
        without = load_dataset(FOLDER, Sources(folder=folder))
    told = capsys.readouterr().err
    whole = load_dataset(FOLDER, Sources(folder=folder))

    assert "dog/a.png" not in without.files
    assert "1 of 4 files cannot be read and are left out: dog/a.png: [Errno 13] Permission denied" in told
    assert "dog/a.png" in whole.files


# Which recipe suits


@pytest.mark.parametrize(("side", "recipe"), [(95, "images-small"), (96, "images")])
def test_recipe_is_chosen_by_the_median_of_the_shorter_sides(side: int, recipe: str, tmp_path: Path) -> None:
    sizes = [(10, 2000), (2000, 20), (side, 100), (1000, 1001), (1500, 1000)]
    for number, size in enumerate(sizes):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.new("L", size).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no image")

    assert chosen_recipe(tmp_path) == recipe


def test_folder_of_broken_files_is_taken_for_photos(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "broken.jpg").write_bytes(b"no image")

    assert chosen_recipe(tmp_path) == "images"
