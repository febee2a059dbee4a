"""Typicality, its parts by scipy and scikit-learn, and what lengths, strangers and odd numbers make of it."""

import copy
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import expit
from scipy.stats import entropy
from sklearn.covariance import ledoit_wolf
from torch import nn
from training_samples import digits

from serving.runtimes import _load_torchscript, open_onnx
from training.classifier import Architecture, ServedGraph, build_classifier
from training.encoders import Encoder
from training.export import write_graphs
from training.principal import Rows, as_linear, moments_of, principal_components
from training.recipe import EncoderSpec, HeadSpec
from training.typicality import Parts, Scale, Seen, Typicality, score
from training.typicality_fit import (
    ALL_UP_TO,
    MOST_DIRECTIONS,
    Evidence,
    directions_of,
    evidence_of,
    fit_parts,
    measured,
)

FloatArray = NDArray[np.float64]
CLASSES, DIM, CHANNELS = 4, 20, 6


class Sample(NamedTuple):
    """What a network might see of images of four classes: features after a ReLU, first block and contrast."""

    pooled: FloatArray
    first_block: FloatArray
    contrast: FloatArray
    labels: NDArray[np.int64]

    def evidence(self, positions: NDArray[np.int64] | None = None) -> Evidence:
        positions = np.arange(len(self.labels)) if positions is None else positions
        return Evidence(rows(self.pooled), rows(self.first_block), self.contrast).at(positions)

    def seen(self) -> Seen:
        return Seen(*map(torch.from_numpy, self[:3]))


def sample(per_class: int, seed: int = 0, dim: int = DIM, classes: int = CLASSES) -> Sample:
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(9)
    labels = np.repeat(np.arange(classes), per_class)
    means, uneven = 1 + fixed.normal(size=(classes, dim)), fixed.normal(size=(dim, dim)) / dim**0.5
    pooled = np.maximum(means[labels] + rng.normal(size=(len(labels), dim)) @ uneven, 0)
    first_block = np.abs(2 + rng.normal(size=(len(labels), CHANNELS)) * np.arange(1, CHANNELS + 1) / CHANNELS)
    return Sample(pooled, first_block, rng.uniform(20, 80, len(labels)), labels)


def rows(features: FloatArray) -> Rows:
    return Rows(features, np.arange(len(features)))


def fit(train: Sample, calibration: Sample, classes: int = CLASSES) -> Typicality:
    parts = fit_parts(train.evidence(), train.labels, classes)
    return Typicality(parts, Scale.of(measured(parts, calibration.evidence())))


def scores(typicality: Typicality, images: Sample, posterior: FloatArray | None = None) -> FloatArray:
    even = np.full((len(images.labels), CLASSES), 1 / CLASSES)
    given = torch.from_numpy(even if posterior is None else posterior)
    return typicality(images.seen(), torch.zeros(0), given).numpy()  # type: ignore[no-any-return]


def unit(features: FloatArray) -> FloatArray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def joined(images: Sample) -> FloatArray:
    return np.hstack([unit(images.pooled), unit(images.first_block)])


def squared_distances(deviations: FloatArray, covariance: FloatArray) -> FloatArray:
    return np.einsum("...d,de,...e->...", deviations, np.linalg.inv(covariance), deviations)  # type: ignore[no-any-return]


def gaussians(features: FloatArray, labels: NDArray[np.int64]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Class means, the covariance within classes as scikit-learn shrinks it, and that between them."""
    means = np.stack([features[labels == c].mean(0) for c in range(labels.max() + 1)])
    within = ledoit_wolf(features - means[labels], assume_centered=True)[0]
    return means, within, np.cov(means.T, fweights=np.bincount(labels), bias=True)


def relative(train: FloatArray, labels: NDArray[np.int64], new: FloatArray) -> FloatArray:
    """The squared distance to the nearest class less that to all images, the covariances within and in sum.

    In directions that tell no classes both are the same.
    """
    means, within, between = gaussians(train, labels)
    nearest = squared_distances(new[:, None] - means, within).min(1)
    return nearest - squared_distances(new - train.mean(0), within + between)


def outside(train: FloatArray, labels: NDArray[np.int64], new: FloatArray) -> FloatArray:
    """The squared distance in the generalised eigenvectors without any variance between classes."""
    _, within, between = gaussians(train, labels)
    values, vectors = eigh(between, within)
    assert (values[: -labels.max()] < 1e-10).all()
    return np.square((new - train.mean(0)) @ vectors[:, : -labels.max()]).sum(1)


@pytest.mark.parametrize("per_class", [8, 300])
def test_parts_are_those_of_two_gaussians_by_scipy_and_scikit_learn(per_class: int) -> None:
    train, new = sample(per_class), sample(30, seed=1)
    of_first, new_first = unit(train.first_block), unit(new.first_block)
    covariance = ledoit_wolf(of_first - of_first.mean(0), assume_centered=True)[0]

    found = measured(fit_parts(train.evidence(), train.labels, CLASSES), new.evidence())

    expected = [
        relative(train.pooled, train.labels, new.pooled),
        np.log(outside(joined(train), train.labels, joined(new)) + 1e-6),
        -np.log(new.contrast + 1),
        np.log(squared_distances(new_first - of_first.mean(0), covariance) + 1e-6),
    ]
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-8, atol=1e-8)


def test_of_many_features_the_principal_directions_are_measured_and_what_is_left() -> None:
    train, new = (sample(150, seed, dim=ALL_UP_TO + 10) for seed in (0, 1))
    seen, unseen = unit(train.pooled), unit(new.pooled)
    of_pooled, of_seen = (
        np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:MOST_DIRECTIONS] for x in (train.pooled, seen)
    )
    left = unseen - seen.mean(0) - (unseen - seen.mean(0)) @ of_seen.T @ of_seen

    found = measured(fit_parts(Evidence(rows(train.pooled)), train.labels, CLASSES), Evidence(rows(new.pooled)))

    expected = [
        relative(train.pooled @ of_pooled.T, train.labels, new.pooled @ of_pooled.T),
        np.log(outside(seen @ of_seen.T, train.labels, unseen @ of_seen.T) + 1e-6),
        np.log(np.square(left).sum(1) + 1e-9),
    ]
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dim", [12, MOST_DIRECTIONS + 20])
def test_features_in_principal_directions_stand_for_them(dim: int) -> None:
    """The parts are the same; the typicality has no directions of its own."""
    pooled = ALL_UP_TO + 10
    train, new = (sample(150, seed, dim=pooled) for seed in (0, 1))
    train, new = (one._replace(pooled=unit(one.pooled) * pooled**0.5) for one in (train, new))
    directions = principal_components(moments_of(rows(train.pooled)), dim)
    fewer = directions.weights[:MOST_DIRECTIONS]
    inside, found_in = ((one.pooled @ fewer.T) / pooled**0.5 for one in (train, new))
    left = np.square(unit(new.pooled) - unit(train.pooled).mean(0)).sum(1)
    left -= np.square(found_in - inside.mean(0)).sum(1)

    parts = fit_parts(Evidence(rows(train.pooled)), train.labels, CLASSES, directions)
    found = measured(parts, Evidence(rows(new.pooled)), directions)

    assert (parts.directions, parts.others.shape[1]) == (None, len(fewer))
    expected = [
        relative(inside, train.labels, found_in),
        np.log(outside(inside, train.labels, found_in) + 1e-6),
        np.log(left + 1e-9),
    ]
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-7, atol=1e-7)


def test_directions_are_the_projections_only_if_it_is_of_principal_components() -> None:
    features = sample(50, dim=ALL_UP_TO + 10).pooled
    projection = as_linear(principal_components(moments_of(rows(features)), 8))
    learned = nn.Linear(ALL_UP_TO + 10, 8)
    classifier = build_classifier(
        Architecture((ALL_UP_TO + 10, 1, 1), 2, EncoderSpec(kind="linear"), HeadSpec(kind="lda"))
    )

    def found(power: bool, layer: nn.Module) -> object:
        spec = EncoderSpec(kind="linear", power=power)
        classifier.architecture = Architecture((ALL_UP_TO + 10, 1, 1), 2, spec, HeadSpec(kind="lda"))
        classifier.encoder = Encoder(nn.Flatten(), layer)
        return directions_of(classifier)

    assert found(True, projection) is not None
    assert found(False, projection) is None
    assert found(True, learned) is None
    assert found(True, nn.Identity()) is None


def test_scale_is_the_mean_the_deviation_and_the_upper_quantiles() -> None:
    parts = np.stack([np.arange(101.0), np.geomspace(1, 100, 101)], 1)

    found = Scale.of(parts)

    assert found.centre == 50
    assert found.spread == pytest.approx(math.sqrt((101**2 - 1) / 12))
    assert found.usual.tolist() == pytest.approx([90, 100**0.9])
    assert found.tail.tolist() == pytest.approx([9, 100**0.99 - 100**0.9])


def test_score_is_the_formula_of_the_docstring() -> None:
    rng = np.random.default_rng(0)
    calibration, parts = rng.normal(size=(500, 3)), rng.normal(size=(200, 3)) * 3
    posterior = rng.dirichlet(np.ones(4), 200)
    relative, quantiles = calibration[:, 0], np.quantile(calibration, [0.9, 0.99], axis=0)
    surprise = np.log(10) * (1 + (parts - quantiles[0]) / (quantiles[1] - quantiles[0]))
    near = expit(1.7 * (parts[:, 0] - relative.mean()) / relative.std()) + 2 * entropy(posterior, axis=1) / np.log(4)
    expected = -np.log1p(near + 0.2 * np.square(np.maximum(0, surprise - np.log(25))).sum(1))

    found = score(torch.from_numpy(parts), torch.from_numpy(posterior), 4, Scale.of(calibration))

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_a_part_at_its_99_percent_quantile_is_as_surprising_as_one_image_in_100() -> None:
    scale = Scale(*(torch.tensor(value, dtype=torch.float64) for value in (0.0, 1.0, [1e9, 2.0], [1.0, 3.0])))
    sure = torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    found = score(torch.tensor([[0.0, 5.0]], dtype=torch.float64), sure, 2, scale)

    assert found.item() == pytest.approx(-math.log1p(0.5 + 0.2 * math.log(100 / 25) ** 2))


def test_only_the_relative_distance_depends_on_the_length_of_pooled_features() -> None:
    train = sample(100)
    parts, longer = fit_parts(train.evidence(), train.labels, CLASSES), train._replace(pooled=7 * train.pooled)
    brighter = train._replace(first_block=3 * train.first_block)

    plain, found = measured(parts, train.evidence()), measured(parts, longer.evidence())

    np.testing.assert_allclose(found[:, 1:], plain[:, 1:], rtol=1e-9)
    assert not np.allclose(found[:, 0], plain[:, 0])
    np.testing.assert_allclose(measured(parts, brighter.evidence()), plain, rtol=1e-9)


def test_neither_units_nor_the_order_of_images_and_features_matter() -> None:
    train, calibration, new = sample(100), sample(100, seed=1), sample(30, seed=2)
    order, features = np.random.default_rng(0).permutation(400), np.random.default_rng(1).permutation(DIM)
    shuffled = Sample(*(part[order] for part in train))
    others = [one._replace(pooled=5 * one.pooled[:, features]) for one in (shuffled, calibration, new)]

    found = scores(fit(*others[:2]), others[2])

    np.testing.assert_allclose(found, scores(fit(train, calibration), new), rtol=1e-6)


def test_a_likelier_label_makes_an_image_more_typical() -> None:
    typicality, new = fit(sample(100), sample(100, seed=1)), sample(10, seed=2)
    sure = np.eye(CLASSES)[new.labels]

    assert (scores(typicality, new, sure) > scores(typicality, new)).all()


@pytest.mark.parametrize("stranger", ["even features", "noise", "flat", "other colours", "between the classes"])
def test_strangers_are_less_typical(stranger: str) -> None:
    typicality, new, rng = fit(sample(200), sample(200, seed=1)), sample(200, seed=2), np.random.default_rng(3)
    changed = {
        "even features": {"pooled": np.ones((800, DIM))},
        "noise": {"pooled": np.abs(rng.normal(size=(800, DIM)))},
        "flat": {"contrast": np.zeros(800)},
        "other colours": {"first_block": new.first_block[:, ::-1] ** 2},
        "between the classes": {"pooled": (new.pooled + np.roll(new.pooled, 200, 0)) / 2},
    }[stranger]

    strange = scores(typicality, new._replace(**changed))

    assert np.median(strange) < np.quantile(scores(typicality, new), 0.05)


# Numbers that are at the edge


@pytest.mark.parametrize(
    ("per_class", "dim", "classes"),
    [(2, DIM, 4), (1, DIM, 4), (30, 3, 4), (30, 2, 4), (30, 1, 2), (100, DIM, 2), (6, DIM, 40)],
    ids=["few images", "one image a class", "D = C - 1", "D < C - 1", "one feature", "two classes", "many classes"],
)
def test_scores_are_finite_for_few_images_features_and_classes(per_class: int, dim: int, classes: int) -> None:
    train = sample(per_class, dim=dim, classes=classes)
    train = train._replace(pooled=train.pooled + 0.1)
    zeros = Sample(*(np.zeros_like(part) for part in train))
    parts = fit_parts(Evidence(rows(train.pooled)), train.labels, classes)
    typicality = Typicality(parts, Scale.of(measured(parts, Evidence(rows(train.pooled))))).float()

    for one in (train, zeros, train._replace(pooled=1e3 * train.pooled)):
        pooled = torch.from_numpy(one.pooled).float()
        posterior = torch.eye(classes)[torch.from_numpy(train.labels)]
        assert torch.isfinite(typicality(Seen(pooled), torch.zeros(0), posterior)).all()


def test_parts_that_do_not_vary_have_a_scale() -> None:
    """All images of a class are the same, and so are their contrast and their first block."""
    train = sample(20)
    same = Sample(train.pooled[::20].repeat(20, 0), np.ones((80, CHANNELS)), np.full(80, 50.0), train.labels)

    typicality = fit(same, same).float()

    for one in (same, train):
        seen = Seen(*(part.float() for part in one.seen()))
        found = typicality(seen, torch.zeros(0), torch.full((80, CLASSES), 1 / CLASSES))
        assert torch.isfinite(found).all()


def test_float32_is_near_to_float64() -> None:
    exact, new = fit(sample(300), sample(300, seed=1)), sample(100, seed=2)
    seen = Seen(*(part.float() for part in new.seen()))
    even = torch.full((400, CLASSES), 1 / CLASSES)

    found = copy.deepcopy(exact).float()(seen, torch.zeros(0), even).numpy()

    np.testing.assert_allclose(found, scores(exact, new), atol=2e-5)


def test_a_saved_state_gives_the_same_scores() -> None:
    typicality, new = fit(sample(50), sample(50, seed=1)), sample(10, seed=2)

    again = Typicality.from_state(typicality.state_dict())

    np.testing.assert_array_equal(scores(again, new), scores(typicality, new))
    assert isinstance(again.parts, Parts)


# What a classifier sees


@pytest.mark.parametrize(
    ("spec", "shape", "parts"),
    [
        (EncoderSpec(dim=3, width=4), (1, 8, 8), ("first_block",)),
        (EncoderSpec(kind="none"), (1, 18, 18), ("mean", "directions")),
        (EncoderSpec(kind="mlp", hidden=(12,)), (3, 4, 4), ()),
    ],
    ids=["first block", "directions of its own", "plain"],
)
def test_both_graphs_answer_what_float64_does(
    spec: EncoderSpec, shape: tuple[int, int, int], parts: tuple[str, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    classifier = build_classifier(Architecture(shape, 10, spec, HeadSpec(kind="softmax"))).eval()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (600, *shape), dtype=np.uint8))
    labels, known = np.arange(300) % 10, images[:300]
    classifier.learn_normalisation(images)
    fitted = fit_parts(evidence_of(classifier, known), labels, 10)
    scale = Scale.of(measured(fitted, evidence_of(classifier, images[300:])))
    classifier.typicality = Typicality(fitted, scale).float()

    write_graphs(classifier, tmp_path)

    with np.load(tmp_path / "golden.npz") as golden:
        expected, seen = golden["typicality_score"], golden["images"]
    names = ServedGraph(classifier).output_names
    found = open_onnx(tmp_path / "model.onnx", names)(seen)["typicality_score"]
    traced = _load_torchscript(tmp_path / "model.pt", torch.device("cpu"))(torch.from_numpy(seen))[
        names.index("typicality_score")
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(traced.numpy(), expected, atol=1e-4)
    for name in ("first_block", "mean", "directions"):
        assert (getattr(fitted, name) is not None) == (name in parts)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_six_conv_sees_pixels_its_first_block_and_pooled_features(channels: int) -> None:
    torch.manual_seed(0)
    architecture = Architecture((channels, 8, 8), 10, EncoderSpec(dim=3, width=4), HeadSpec(kind="lda"))
    classifier = build_classifier(architecture).eval()
    images = digits().images[:40].unflatten(0, (-1, 4))[:, :channels, 0].contiguous()
    classifier.learn_normalisation(images)

    found = evidence_of(classifier, images)

    trunk, normalised = classifier.encoder.trunk, classifier.normalise(images)
    first = nn.Sequential(*list(trunk)[:7])(normalised)  # type: ignore[call-overload]
    assert found.first_block is not None
    np.testing.assert_allclose(found.first_block.array, first.mean((2, 3)).detach(), rtol=1e-5)
    np.testing.assert_allclose(found.pooled.array, trunk(normalised).detach(), rtol=1e-5)
    deviations = images.numpy().astype(float).var((2, 3)).mean(1) ** 0.5
    np.testing.assert_allclose(found.contrast, deviations, rtol=1e-5)


@pytest.mark.parametrize("kind", ["none", "linear"])
def test_other_encoders_have_no_first_block(kind: str) -> None:
    spec = EncoderSpec(kind=kind, dim=5 if kind == "linear" else None)
    classifier = build_classifier(Architecture((1, 8, 8), 10, spec, HeadSpec(kind="softmax"))).eval()

    found = evidence_of(classifier, digits().images[:9])

    assert found.first_block is None
    assert found.pooled.dim == 64
    assert found.contrast is not None


def test_features_of_a_backbone_are_no_pixels() -> None:
    stage = build_classifier(Architecture((7, 1, 1), 2, EncoderSpec(kind="linear"), HeadSpec(kind="lda"))).eval()
    features = torch.rand(5, 7, 1, 1)

    found = evidence_of(stage, features)

    assert (found.first_block, found.contrast) == (None, None)
    np.testing.assert_array_equal(found.pooled.array, features.flatten(1))
