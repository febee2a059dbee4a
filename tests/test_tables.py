"""Tables of held-out images: who is in them, and what they promise of images that nobody has seen."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_samples import small_recipe

from serving.bundle import Bundle
from serving.held_out import HeldOut
from serving.runtimes import open_runtime
from training.data import Sources
from training.evaluate import run_graph
from training.export import export
from training.images import images_of
from training.recipe import RecipeError
from training.run import Run
from training.train import train
from training.variants import renew_variants

CPU = torch.device("cpu")
SHARE = 0.4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Digits with held-out images; read only."""
    recipe = small_recipe(
        data={"name": "digits", "validation": 0.0},
        fit={"epochs": 6},
        refit={"dim": 8, "components": 2, "covariance": "diagonal", "ridge": 0.05},
        calibration={"temperature": "fit", "share": SHARE},
    )
    run = Run.create("some-digits", recipe, "one", tmp_path_factory.mktemp("runs"))
    train(run, Sources(), CPU)
    return run


@pytest.fixture(scope="module")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle, with its variants; read only."""
    target = tmp_path_factory.mktemp("store") / "some-digits" / "1"
    return export(run, Sources(), target, variants=["int8", "float16"])


def answers_for(bundle: Bundle, run: Run, split: str) -> tuple[dict[str, Any], np.ndarray]:
    part = images_of(run, Sources()).streamed(split)
    return run_graph(open_runtime(bundle, "onnx"), part.images, bundle.manifest.input), part.labels.numpy()


def test_table_holds_what_the_graph_answers_for_images_that_nothing_was_fitted_to(bundle: Bundle, run: Run) -> None:
    splits = run.splits()
    outputs, labels = answers_for(bundle, run, "held_out")

    table = HeldOut.read(bundle.path / "held_out.npz")

    assert bundle.manifest.held_out is not None
    assert bundle.manifest.held_out.by == "split"
    assert bundle.manifest.held_out.images == len(table) == len(splits["held_out"])
    assert len(splits["calibration"]) == pytest.approx(len(splits["held_out"]), abs=10)
    np.testing.assert_allclose(table.typicality_scores, outputs["typicality_score"], rtol=1e-5)
    np.testing.assert_allclose(table.label_probabilities, outputs["posterior"][np.arange(len(labels)), labels])
    assert table.labels.tolist() == labels.tolist()


def test_typicality_of_new_images_is_evenly_spread_and_sets_hold_their_labels(bundle: Bundle, run: Run) -> None:
    outputs, labels = answers_for(bundle, run, "test")
    table = HeldOut.read(bundle.path / "held_out.npz")

    typicality = table.typicality(outputs["typicality_score"])
    covered = table.possible(outputs["posterior"], 0.9)[np.arange(len(labels)), labels]

    assert np.abs(np.quantile(typicality, [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.12  # of other writers
    assert covered.mean() > 0.87
    recorded = bundle.manifest.metrics["held_out"]
    assert recorded["atypical"] == pytest.approx((typicality < 0.01).mean(), abs=1e-6)
    assert recorded["sets"]["0.9"]["coverage"] == pytest.approx(covered.mean(), abs=1e-6)


@pytest.mark.parametrize("kind", ["noise", "even"])
def test_most_strangers_are_atypical(bundle: Bundle, kind: str) -> None:
    images = {
        "noise": np.random.default_rng(0).integers(0, 256, (100, 1, 8, 8), dtype=np.uint8),
        "even": np.full((1, 1, 8, 8), 1, np.uint8) * np.arange(256, dtype=np.uint8)[:, None, None, None],
    }[kind]
    table = HeldOut.read(bundle.path / "held_out.npz")

    typicality = table.typicality(open_runtime(bundle, "onnx")(images)["typicality_score"])

    assert (typicality < 0.01).mean() > 0.8


def test_both_runtimes_give_one_score(bundle: Bundle) -> None:
    images, expected = bundle.read_golden()

    for kind in ("onnx", "torchscript"):
        found = open_runtime(bundle, kind)(images)["typicality_score"]  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected["typicality_score"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_variant_has_a_table_of_its_own(bundle: Bundle, precision: str) -> None:
    plain, quick = (HeldOut.read(bundle.path / name) for name in ("held_out.npz", f"held_out.{precision}.npz"))

    assert len(plain) == len(quick)
    assert np.corrcoef(plain.typicality_scores, quick.typicality_scores)[0, 1] > 0.9
    assert not np.array_equal(plain.typicality_scores, quick.typicality_scores)
    assert plain.groups.tolist() == quick.groups.tolist()


def test_renewed_variant_has_the_same_table(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "some-digits" / "1"
    shutil.copytree(bundle.path, folder)

    renewed = renew_variants(folder, ["int8"], images_of(run, Sources()))

    before, after = (HeldOut.read(one.path / "held_out.int8.npz") for one in (bundle, renewed))
    np.testing.assert_array_equal(before.typicality_scores, after.typicality_scores)
    np.testing.assert_array_equal(before.label_probabilities, after.label_probabilities)


def test_priors_are_the_shares_of_the_training_images(bundle: Bundle, run: Run) -> None:
    images = images_of(run, Sources())
    counts = np.bincount(images.dataset.labels[images.splits["train"]])

    assert bundle.manifest.priors == pytest.approx(counts / counts.sum())
    assert json.loads((bundle.path / "bundle.json").read_bytes())["schema_version"] == 2


def test_a_share_and_cross_fitting_exclude_each_other() -> None:
    with pytest.raises(RecipeError) as caught:
        small_recipe(
            encoder={"kind": "none"}, fit={"epochs": 0}, calibration={"temperature": "cross-fit", "share": 0.1}
        )

    assert str(caught.value) == (
        "calibration.share must be 0 for the temperature cross-fit, which judges all training images, got 0.1"
    )
