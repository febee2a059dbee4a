"""The benchmark of serving: the images that it sends, and how its table tells them apart."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from load_tests.sent_images import CAMERA, PHOTO_BYTES, Sent, encode_image, shape
from serving.bundle import Bundle
from serving.preprocess import read_image
from training.speed_tables import serving_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(ROOT / "model_store" / "cifar100-lda-best" / "1")


def test_shape_arrives_as_it_is(bundle: Bundle) -> None:
    file = encode_image(Sent.shape, bundle)

    np.testing.assert_array_equal(read_image(file, bundle.manifest.input), shape(bundle))


def test_photo_has_the_models_size_and_nearly_the_bytes_that_it_says(bundle: Bundle) -> None:
    wide = bundle.manifest.model_copy(
        update={"input": bundle.manifest.input.model_copy(update={"height": 224, "width": 224})}
    )

    file = encode_image(Sent.photo, Bundle(bundle.path, wide))

    with Image.open(BytesIO(file)) as photo:
        assert (photo.format, photo.size) == ("JPEG", (224, 224))
    assert len(file) == pytest.approx(PHOTO_BYTES, rel=0.1)


def test_camera_photo_has_twelve_megapixels_and_is_taken(bundle: Bundle) -> None:
    file = encode_image(Sent.camera, bundle)

    with Image.open(BytesIO(file)) as photo:
        assert (photo.format, photo.size[::-1]) == ("JPEG", CAMERA)
        assert photo.size[0] * photo.size[1] == 12_000_000
    assert 2_000_000 < len(file) < 6_000_000
    assert read_image(file, bundle.manifest.input).shape == (3, 32, 32)


def test_table_says_which_photo_was_sent() -> None:
    row = dict.fromkeys(("connections", "answers_per_second", "bare_per_second", "ratio", "p50_ms", "p99_ms"), 1)
    record = {"bundle": "gone:1", "precision": "float32", "machine": "some", "rows": [row | {"bare_ms": 2}]}
    photo = record | {"image": "camera", "image_bytes": 3_398_716}

    table = serving_table({"serving": {"gone:1 float32 cpu": record, "gone:1 float32 cpu camera": photo}})

    assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == [
        "| `gone:1` ‡",
        "| `gone:1` ‡, camera of 3,399 kB",
    ]
