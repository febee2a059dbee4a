"""The study of photographs: its draws, scikit-learn's own answers on the same features, a folder of a few images."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn
from training_samples import small_recipe
from typer.testing import CliRunner

from training import features
from training.__main__ import app
from training.backbones import normalisation_of
from training.classifier import Architecture, Classifier, build_classifier
from training.data import DataError
from training.digests import digest_of
from training.extraction import Extractor, Pooled, _in_torch
from training.images import Labelled
from training.photo_tables import rows_of_photos
from training.recipe import load_recipe
from training.stale import state_of
from training.studies import photographs
from training.studies.few_images import (
    Figures,
    draw,
    draws_of,
    kept,
    measure_head,
    measure_logistic,
    measure_neighbours,
)
from training.studies.photo_sets import cifar10
from training.studies.study import Outcome, Setting
from training.tables import results_page
from training.weights import load_backbone

pytestmark = pytest.mark.usefixtures("one_thread")

FEATURES, CLASSES = 6, 3


def blobs(seed: int, of_each: int) -> Labelled:
    """Overlapping clouds of features in every class, of unlike scales."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), of_each)
    centres = np.random.default_rng(0).normal(0, 1.2, (CLASSES, FEATURES))
    points = (centres[labels] + rng.normal(0, 1, (len(labels), FEATURES))) * np.logspace(-1, 1, FEATURES)
    return Labelled(torch.from_numpy(points).float()[:, :, None, None], torch.from_numpy(labels))


def arrays(data: Labelled) -> tuple[np.ndarray, np.ndarray]:
    return data.images.flatten(1).numpy(), data.labels.numpy()


# Draws


def test_draws_are_stratified_seeded_and_nested() -> None:
    labels = torch.randint(4, (300,), generator=torch.Generator().manual_seed(0))

    few, more, others = draw(labels, 5, seed=1), draw(labels, 20, seed=1), draw(labels, 20, seed=2)

    assert labels[few].bincount().tolist() == [5] * 4
    assert labels[more].bincount().tolist() == [20] * 4
    assert torch.equal(more, draw(labels, 20, seed=1))
    assert torch.equal(more, more.unique())
    assert set(few.tolist()) < set(more.tolist())
    assert 0 < len(set(more.tolist()) & set(others.tolist())) < 40


def test_every_image_is_drawn_once_and_sizes_beyond_a_class_are_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    even, uneven = torch.arange(2).repeat(10), torch.tensor([0] * 10 + [1] * 12)

    assert {size: len(draws) for size, draws in draws_of(even, (5, 10, 20, 60), 3).items()} == {5: 3, 10: 1}
    assert capsys.readouterr().out == "skipped: 20, 60 images a class, for the smallest class has 10\n"
    assert {size: len(draws) for size, draws in draws_of(uneven, (5, 10), 3).items()} == {5: 3, 10: 3}
    assert draws_of(even, (10,), 3)[10][0].tolist() == list(range(20))


# Methods


@pytest.mark.parametrize("standardised", [False, True])
def test_logistic_regression_is_scikit_learns_with_the_c_that_folds_prefer(standardised: bool) -> None:
    train, test = blobs(1, 10), blobs(2, 60)
    (points, labels), (tested, truth) = arrays(train), arrays(test)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)

    def fitted(strength: float, kept_features: np.ndarray, kept_labels: np.ndarray) -> Callable[[np.ndarray], Any]:
        scaler = StandardScaler(with_mean=standardised, with_std=standardised).fit(kept_features)
        model = LogisticRegression(C=strength, max_iter=5000).fit(scaler.transform(kept_features), kept_labels)
        return lambda others: model.predict(scaler.transform(others))

    def held_out(strength: float) -> float:
        shares = []
        for ours, theirs in folds.split(points, labels):
            answers = fitted(strength, points[ours], labels[ours])(points[theirs])
            shares.append((answers == labels[theirs]).mean())
        return float(np.mean(shares))

    best = max((0.01, 0.1, 1.0, 10.0), key=held_out)
    expected = (fitted(best, points, labels)(tested) == truth).mean()
    found = measure_logistic(train, test, standardised=standardised)

    assert found == {"accuracy": pytest.approx(expected)}
    assert 0.5 < found["accuracy"] < 1


def test_neighbours_are_scikit_learns_with_the_number_that_folds_prefer() -> None:
    train, test = blobs(1, 10), blobs(2, 60)
    (points, labels), (tested, truth) = arrays(train), arrays(test)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)

    def held_out(count: int) -> float:
        return float(cross_val_score(KNeighborsClassifier(count), points, labels, cv=folds).mean())

    best = KNeighborsClassifier(max((1, 3, 5), key=held_out)).fit(points, labels)
    found = measure_neighbours(train, test)

    assert found == {"accuracy": pytest.approx((best.predict(tested) == truth).mean())}
    assert 0.4 < found["accuracy"] < 1


def test_head_has_the_accuracy_and_nll_of_scikit_learns_discriminant_analysis() -> None:
    train, test = blobs(1, 40), blobs(2, 60)
    recipe = small_recipe(
        encoder={"kind": "none", "dim": None}, refit={"head": "lda", "dim": FEATURES, "ridge": 1e-9}, fit={"epochs": 0}
    )
    stage = build_classifier(Architecture((FEATURES, 1, 1), CLASSES, recipe.encoder, recipe.head))

    found = measure_head(stage, recipe, train, test)

    (points, labels), (tested, truth) = arrays(train), arrays(test)
    posterior = LinearDiscriminantAnalysis(solver="lsqr").fit(points, labels).predict_proba(tested)
    assert found["accuracy"] == pytest.approx((posterior.argmax(1) == truth).mean(), abs=1e-6)
    assert found["nll"] == pytest.approx(log_loss(truth, posterior), rel=1e-3)
    assert 0 < found["ece"] < 0.2
    assert found["mda"] == 0


def test_kept_measurement_is_made_once_for_the_same_images(tmp_path: Path) -> None:
    calls = []

    def measure(train: Labelled, test: Labelled) -> Figures:
        calls.append(len(train))
        return {"accuracy": len(train) / 100}

    once = kept(tmp_path / "new", "a method", measure)

    assert [once(blobs(1, n), blobs(2, 5)) for n in (4, 4, 5)] == [{"accuracy": n / 100} for n in (12, 12, 15)]
    assert calls == [12, 15]
    assert once(blobs(1, 4), blobs(3, 5)) == kept(tmp_path / "new", "another", measure)(blobs(1, 4), blobs(2, 5))
    assert calls == [12, 15, 12, 12]


# A folder


def write_photos(folder: Path, classes: str = "abc", train: int = 6, test: int = 8) -> Path:
    """Noise of 32 x 32 in patches, a little more of one colour in each class."""
    for part, count in (("train", train), ("test", test)):
        for index, label in enumerate(classes):
            (folder / part / label).mkdir(parents=True)
            for position in range(count):
                rng = np.random.default_rng([index, position, len(part)])
                pixels = rng.integers(0, 200, (8, 8, 3)).repeat(4, 0).repeat(4, 1)
                pixels[..., index] += 25
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / label / f"{position}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def outcome(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Of three classes of six photos each, with features by torch, which begins sooner; read only."""

    def by_torch(classifier: Classifier, device: torch.device) -> Extractor:
        return _in_torch(Pooled(classifier).eval(), device, "float32")

    setting = Setting(tmp_path_factory.mktemp("out"), data=folder, cache=tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "open_extractor", by_torch)
        return photographs.run(setting, sizes=(5, 6, 60), cifar10_sizes=(), draws=2)


def features_in(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the network makes of the images of class folders, resized by Pillow and without the project's machinery."""
    network: nn.Module = load_backbone("efficientnet-lite0")
    mean, std = normalisation_of("efficientnet-lite0")
    files = sorted(folder.glob("*/*.png"))
    images = [np.asarray(Image.open(file).resize((224, 224), Image.Resampling.BILINEAR)) for file in files]
    with torch.inference_mode():
        found = network((torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) - mean) / std)
    return found.numpy(), np.array([file.parent.name for file in files])


def test_figures_of_a_folder_are_those_of_scikit_learn_on_the_networks_features(outcome: Outcome, folder: Path) -> None:
    (points, labels), (tested, truth) = features_in(folder / "train"), features_in(folder / "test")
    folds = StratifiedKFold(5, shuffle=True, random_state=0)

    def best(models: list[Any]) -> float:
        model = max(models, key=lambda one: cross_val_score(one, points, labels, cv=folds).mean())
        return float(model.fit(points, labels).score(tested, truth))

    found = outcome.figures["sets"][folder.name]
    measured = found["by_images_a_class"]["6"]
    assert (found["classes"], found["test_images"]) == (3, 24)
    assert measured["k-NN"]["accuracy"] == [pytest.approx(best([KNeighborsClassifier(k) for k in (1, 3, 5)]), abs=1e-6)]
    raw = best([LogisticRegression(C=strength, max_iter=5000) for strength in (0.01, 0.1, 1, 10)])
    assert measured["logistic regression, raw"]["accuracy"] == [pytest.approx(raw, abs=1e-6)]


def test_every_method_is_measured_at_every_draw(outcome: Outcome, folder: Path) -> None:
    by_size = outcome.figures["sets"][folder.name]["by_images_a_class"]

    assert [*by_size] == ["5", "6"]  # 60 are more than there are
    for size, draws in (("5", 2), ("6", 1)):
        methods = by_size[size]
        assert [*methods][:4] == [
            "images", "logistic regression, raw", "logistic regression, standardised", "k-NN",
        ]  # fmt: skip
        assert ("images-small" in methods) == (size == "6")  # 15 images are fewer than its principal components
        assert {len(values) for figures in methods.values() for values in figures.values()} == {draws}
        assert [*methods["images"]] == ["accuracy", "nll", "ece", "mda"]
    assert outcome.files[0].read_bytes().startswith(b"\x89PNG")


def test_study_is_stale_once_it_is_of_other_draws_or_recipes(outcome: Outcome) -> None:
    assert outcome.made_from == digest_of(photographs.parameters((5, 6, 60), (), 2))
    assert state_of("studies", "photographs", {"digest": outcome.made_from}) == "stale"
    assert state_of("studies", "photographs", {"digest": digest_of(photographs.parameters())}) == "current"


def test_cifar10_is_scaled_up_for_both_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    kind, pixels = datasets.CIFAR10, np.random.default_rng(0).integers(0, 256, (5, 3072), np.uint8)
    monkeypatch.setattr(kind, "train_list", [["train", None]])  # None: no checksum, since these are not the real files
    monkeypatch.setattr(kind, "test_list", [["test", None]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": "names", "md5": None})
    (tmp_path / kind.base_folder).mkdir()
    for name, content in {
        "train": {"data": pixels[:3], "labels": [0, 1, 1]},
        "test": {"data": pixels[3:], "labels": [1, 0]},
        "meta": {"names": ["cat", "dog"]},
    }.items():
        (tmp_path / kind.base_folder / name).write_bytes(pickle.dumps(content))

    photos = cifar10(Setting(tmp_path, data_root=tmp_path), load_recipe("images")[1], load_recipe("images-small")[1])

    for of_network, side in (((photos.train, photos.test), 224), ((photos.small_train, photos.small_test), 64)):
        assert [part.labels.tolist() for part in of_network] == [[0, 1, 1], [1, 0]]
        assert [part.input.height for part in of_network] == [side, side]
        assert np.array_equal(of_network[1].images.numpy().reshape(2, -1), pixels[3:])  # type: ignore[union-attr]


def test_folders_that_do_not_suit_are_refused(tmp_path: Path) -> None:
    write_photos(tmp_path / "half", train=1, test=1)
    (tmp_path / "half" / "train").rename(tmp_path / "whole")
    write_photos(tmp_path / "unlike", train=1, test=1)
    (tmp_path / "unlike" / "test" / "c").rename(tmp_path / "unlike" / "test" / "d")

    def error_of(data: Path | None) -> str:
        with pytest.raises(DataError) as caught:
            photographs.run(Setting(tmp_path / "out", data=data, cache=tmp_path / "cache"), cifar10_sizes=())
        return str(caught.value)

    assert error_of(None) == "a folder of class folders must be named with --data FOLDER, got none"
    assert error_of(tmp_path / "whole") == (
        f"--data must be a folder with train and test, each of class folders, got {tmp_path}/whole, which has class "
        "folders alone: move some images of each class to test"
    )
    assert error_of(tmp_path / "unlike") == (
        f"{tmp_path}/unlike/train and {tmp_path}/unlike/test must hold the same class folders, got c, d in one alone"
    )


def test_command_takes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(app, ["study", "photographs", "--data", "elsewhere", "--device", "cpu"])

    assert str(result.exception) == "--data must be a folder of class folders, got elsewhere, which is not a folder"


# The table


def test_table_has_means_over_draws_and_the_better_logistic_regression() -> None:
    measured = {
        "images": {"accuracy": [0.9, 1.0], "nll": [0.2, 0.3], "ece": [0.01, 0.03], "mda": [0.0, 1.0]},
        "logistic regression, raw": {"accuracy": [0.8, 0.8]},
        "logistic regression, standardised": {"accuracy": [0.7, 1.0]},
        "k-NN": {"accuracy": [0.5, 0.5]},
        "images-small": {"accuracy": [0.25]},
    }
    figures = {"sets": {"birds": {"classes": 2, "test_images": 1200, "by_images_a_class": {"5": measured}}}}

    head, rows = rows_of_photos(figures)
    page = results_page({"studies": {"photographs": {**figures, "digest": "of yesterday", "date": "2026-01-02"}}})

    expected = ("birds", "5", "2", "95.0 ± 7.1 %", "85.0 ± 21.2 %", "50.0 ± 0.0 %", "25.0 %", "2.0 %", "0.250", "1,200")
    assert rows == [expected]
    assert f"| {' | '.join(head)} |" in page
    assert f"| {' | '.join(expected)} |\n\nAccuracy on the test images, mean ± standard deviation over draws" in page
    assert re.search(r"### photographs †\n\n\| images of \|", page)
    assert "- measured on: test images that no draw has\n- date: 2026-01-02\n" in page
    assert "images a class, 5" not in page
