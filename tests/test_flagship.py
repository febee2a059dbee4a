"""The committed bundles, held to what their manifests and the results say; the flagship on MNIST's own test images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from serving.bundle import Bundle
from serving.predictor import Predictor
from serving.runtimes import open_runtime
from training.data import Sources
from training.evaluate import measure, run_graph
from training.images import load_images
from training.recipe import load_recipe, parse_recipe
from training.results import load_results
from training.variant_costs import LEAST_AGREEMENT, require_cheap

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("cifar100-lda-best", "fashion-mnist-mda-best", "mnist-mda")
COMMITTED = (*SMALL, "flowers12-mda")


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
    for name in ("nll", "brier", "ece", "ece_equal_mass"):
        assert metrics[name] == pytest.approx(bundle.manifest.metrics[name], abs=1e-4)
    for before, now in zip(bundle.manifest.metrics["occupancy"], metrics["occupancy"], strict=True):
        assert now == pytest.approx(before, abs=0.002)  # one or two of a class's thousand images


def test_every_class_uses_a_second_component(bundle: Bundle) -> None:
    second = [sorted(shares)[-2] for shares in bundle.manifest.metrics["occupancy"]]

    assert len(second) == 10
    assert min(second) >= 0.05


def test_holds_out_as_many_images_as_its_recipe_says(bundle: Bundle) -> None:
    splits = {"train": 55_200, "validation": 0, "held_out": 2_400, "calibration": 2_400, "test": 10_000}

    assert bundle.manifest.dataset.splits == splits
    assert bundle.manifest.held_out is not None
    assert bundle.manifest.held_out.images == 2_400


@pytest.mark.parametrize("name", SMALL)
def test_committed_bundle_answers_its_golden_images_and_is_small(name: str) -> None:
    bundle = Bundle.load(ROOT / "model_store" / name / "1")
    images, expected = bundle.read_golden()

    for kind in ("onnx", "torchscript"):
        posterior = open_runtime(bundle, kind)(images)["posterior"]
        assert np.abs(posterior - expected["posterior"]).max() < 1e-5
    sizes = {file.name: file.stat().st_size for file in bundle.path.rglob("*") if file.is_file()}
    variants = sizes.pop("model.int8.onnx"), sizes.pop("model.float16.onnx", 0)
    assert sum(sizes.values()) < 13_000_000
    assert sum(variants) < 5_000_000


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_variants_are_right_here_too(name: str) -> None:
    bundle = Bundle.load(ROOT / "model_store" / name / "1")
    assert "int8" in bundle.manifest.variants
    for precision, variant in bundle.manifest.variants.items():
        Predictor.open(bundle.path, precision=precision).warm_up()
        assert bundle.manifest.metrics["accuracy"] - variant.accuracy <= 0.002
        assert variant.agreement is None or variant.agreement >= LEAST_AGREEMENT
        if variant.judged is not None:
            require_cheap(precision, variant.judged)
    assert (bundle.path / "report" / "index.html").is_file()


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_bundle_was_trained_by_its_recipe_and_is_in_the_results(name: str) -> None:
    manifest = Bundle.load(ROOT / "model_store" / name / "1").manifest
    row = load_results(ROOT / "docs" / "results.json")["models"][name]

    assert parse_recipe(manifest.recipe) == load_recipe(name)[1]
    intervals = row["after"].pop("intervals")
    for key, of_eager in row["after"].items():
        assert manifest.metrics[key] == pytest.approx(of_eager, abs=2e-4), key
    for key, (low, high) in intervals.items():
        assert low <= row["after"][key] <= high, key
    assert f"`model_store/{name}/1`" in (ROOT / "README.md").read_text()
