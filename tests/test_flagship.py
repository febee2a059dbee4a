"""The committed bundle, held to what its manifest and the README say, on MNIST's own test images."""

import re
from pathlib import Path

import pytest
import torch

from serving.bundle import Bundle
from serving.runtimes import open_runtime
from training.data import Sources
from training.evaluate import measure, run_graph
from training.recipe import load_recipe, parse_recipe
from training.train import load_images

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(ROOT / "model_store" / "mnist-mda" / "1")


def test_measures_as_its_manifest_says(bundle: Bundle) -> None:
    images = load_images(parse_recipe(bundle.manifest.recipe), Sources())
    test = images.part("test", torch.device("cpu"))

    metrics = measure(run_graph(open_runtime(bundle, "onnx"), test.images), test.labels)

    assert images.dataset.fingerprint() == bundle.manifest.dataset.fingerprint
    assert metrics["images"] == 10_000
    assert metrics["accuracy"] == bundle.manifest.metrics["accuracy"] >= 0.995
    for name in ("nll", "brier", "ece"):
        assert metrics[name] == pytest.approx(bundle.manifest.metrics[name], abs=1e-4)
    for before, now in zip(bundle.manifest.metrics["occupancy"], metrics["occupancy"], strict=True):
        assert now == pytest.approx(before, abs=0.002)  # one or two of a class's thousand images


def test_every_class_uses_a_second_component(bundle: Bundle) -> None:
    second = [sorted(shares)[-2] for shares in bundle.manifest.metrics["occupancy"]]

    assert len(second) == 10
    assert min(second) >= 0.05


def test_was_trained_by_the_recipe_of_its_name_on_every_training_image(bundle: Bundle) -> None:
    _, recipe = load_recipe("mnist-mda")

    assert parse_recipe(bundle.manifest.recipe) == recipe
    assert bundle.manifest.dataset.splits == {"train": 60_000, "validation": 0, "test": 10_000}


def test_readme_states_its_accuracy(bundle: Bundle) -> None:
    row = re.search(r"^\| `model_store/mnist-mda/1` .*$", (ROOT / "README.md").read_text(), re.MULTILINE)

    assert row is not None
    assert f"{bundle.manifest.metrics['accuracy']:.2%}".replace("%", " %") in row[0]
