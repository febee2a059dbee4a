"""The committed model of twelve flowers: its graphs agree, its components are in use, and it tells strangers."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.preprocess import read_image
from serving.runtimes import open_runtime
from training.photos import PHOTOS, find_photo
from training.weights import describe_weights

FOLDER = Path(__file__).resolve().parents[1] / "model_store" / "flowers12-mda" / "1"
FLOWERS = (
    "bluebell", "buttercup", "colts-foot", "daisy", "dandelion", "fritillary", "iris", "lily-valley", "pansy",
    "sunflower", "tigerlily", "windflower",
)  # fmt: skip
GALLERIES = {"components.png", "confused-images.png", "close-classes.png"}  # of the report, where it shows images
MAX_BYTES = 35_000_000


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Loading it holds every file to its digest."""
    return Bundle.load(FOLDER)


@pytest.fixture(scope="module")
def photos(bundle: Bundle) -> NDArray[np.uint8]:
    """Photos of none of the flowers, (N, 3, 224, 224), in the order of PHOTOS."""
    return np.stack([read_image(find_photo(name).read_bytes(), bundle.manifest.input) for name in PHOTOS])


def test_says_what_it_is(bundle: Bundle) -> None:
    manifest = bundle.manifest

    assert manifest.labels == FLOWERS
    assert (manifest.input.channels, manifest.input.height, manifest.input.width) == (3, 224, 224)
    assert manifest.outputs == ("posterior", "responsibilities", "log_density", "typicality_score", "features")
    assert (manifest.head.kind, manifest.head.classes) == ("mda", 12)
    assert manifest.head.components == 3
    assert manifest.metrics["accuracy"] >= 0.95
    assert manifest.backbone is not None
    assert manifest.backbone.model_dump() == describe_weights("efficientnet-lite0", None)


def test_is_small_and_shows_no_photo_of_a_flower(bundle: Bundle) -> None:
    files = {file.name: file.stat().st_size for file in bundle.path.rglob("*") if file.is_file()}

    assert "index.html" in files
    assert not files.keys() & GALLERIES
    assert not [name for name in files if name.endswith((".jpg", ".jpeg", ".webp"))]
    assert sum(files[name] for name in ("bundle.json", *bundle.manifest.files)) <= MAX_BYTES


def test_most_flowers_use_a_second_component(bundle: Bundle) -> None:
    second = [sorted(shares)[-2] for shares in bundle.manifest.metrics["occupancy"]]

    assert sum(share >= 0.1 for share in second) >= 8


def test_graphs_agree_on_photos(bundle: Bundle, photos: NDArray[np.uint8]) -> None:
    onnx, torchscript = (open_runtime(bundle, kind)(photos) for kind in ("onnx", "torchscript"))

    for name in ("posterior", "responsibilities"):
        np.testing.assert_allclose(onnx[name], torchscript[name], atol=1e-4)
    np.testing.assert_allclose(onnx["log_density"], torchscript["log_density"], rtol=1e-4)
    np.testing.assert_allclose(onnx["features"], torchscript["features"], rtol=1e-3, atol=1e-3)


def test_graphs_give_the_golden_answers(bundle: Bundle) -> None:
    images, expected = bundle.read_golden()

    for kind in ("onnx", "torchscript"):
        posterior = open_runtime(bundle, kind)(images)["posterior"]
        assert np.abs(posterior - expected["posterior"]).max() < 1e-4, kind


def test_strangers_are_less_dense_than_nearly_all_flowers(bundle: Bundle, photos: NDArray[np.uint8]) -> None:
    """A flower that it was not taught is among them: a dahlia."""
    below = bundle.manifest.atypical_below
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224), dtype=np.uint8)
    gray = np.full_like(noise, 128)
    strangers = dict(zip([*PHOTOS, "noise", "gray"], np.concatenate([photos, noise, gray]), strict=True))
    assert below is not None

    for precision in ("float32", *bundle.manifest.variants):
        outputs = open_runtime(bundle, "onnx", precision=precision)(np.stack(list(strangers.values())))
        density = dict(zip(strangers, outputs["log_density"].tolist(), strict=True))
        if precision != "float32":
            del density["dahlia"]  # a flower too: nearer to the bound than a variant may move its density
        assert max(density.values()) < below, (precision, density)
