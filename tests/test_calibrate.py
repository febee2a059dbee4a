"""Calibration: the temperature, against a grid, a known truth, and what it must leave alone."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from training_samples import digits_from, small_recipe, write_digit_folder

from serving.predictor import Predictor
from training.calibrate import FOLDS, FoundTemperature, cross_fitted_nll, find_temperature, fit_temperature, folds_of
from training.classifier import Architecture, ServedGraph, build_classifier
from training.data import Sources
from training.digests import temperature_digest
from training.export import export
from training.recipe import EncoderSpec, HeadSpec, RecipeError
from training.run import Run
from training.train import train

pytestmark = pytest.mark.isa


def drawn(temperature: float, count: int = 20_000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-joints (N, 5) and labels that are drawn from softmax(log-joints / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    log_joints = 8 * torch.randn(count, 5, generator=generator)
    labels = (log_joints / temperature).softmax(1).multinomial(1, generator=generator)[:, 0]
    return log_joints, labels


@pytest.mark.parametrize("truth", [0.5, 1.0, 7.0])
def test_temperature_of_drawn_labels_is_found(truth: float) -> None:
    assert fit_temperature(*drawn(truth)) == pytest.approx(truth, rel=0.05)


def surprise(log_joints: torch.Tensor, labels: torch.Tensor, temperature: float) -> NDArray[np.float64]:
    """Negative log-likelihood of each image in nats, (N,)."""
    log_posterior = log_softmax(log_joints.double().numpy() / temperature, axis=1)
    return -log_posterior[np.arange(len(labels)), labels.numpy()]


@pytest.mark.parametrize("truth", [0.5, 1.7, 5.0])
def test_temperature_of_many_images_is_the_likeliest_to_a_hundredth(truth: float) -> None:
    log_joints, labels = drawn(truth, seed=1)

    likeliest = minimize_scalar(
        lambda log_t: surprise(log_joints, labels, np.exp(log_t)).mean(), bounds=(-3, 3), method="bounded"
    )

    assert fit_temperature(log_joints, labels) == pytest.approx(np.exp(likeliest.x), rel=0.01)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_temperature_goes_with_the_scale_of_the_log_joints(scale: float) -> None:
    log_joints, labels = drawn(1.0, 2_000)

    assert fit_temperature(scale * log_joints, labels) == pytest.approx(scale, rel=0.1)


def alike(count: int, scale: float, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-joints of which one a row is `scale` and the others are 0, and which one that is."""
    favourite = torch.arange(count) % classes
    return scale * torch.nn.functional.one_hot(favourite, classes).float(), favourite


@pytest.mark.parametrize("count", [20, 40, 450])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_split_without_errors_makes_no_classifier_certain(count: int, scale: float) -> None:
    """All right and alike: the likelihood alone would have T fall to zero."""
    log_joints, labels = alike(count, scale)

    temperature = fit_temperature(log_joints, labels)

    errors, own = (-np.expm1(-surprise(log_joints, labels, t)).sum() for t in (temperature, 1.0))
    assert 0 < temperature <= 1
    assert errors >= min(own, 0.5)  # of all images; the classifier's own word may be less


@pytest.mark.parametrize("count", [20, 40, 450])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_split_without_a_right_image_gives_a_finite_temperature(count: int, scale: float) -> None:
    """All wrong and alike: the likelihood alone would have T grow without end."""
    log_joints, favourites = alike(count, scale)

    temperature = fit_temperature(log_joints, (favourites + 1) % 10)

    assert 1 <= temperature <= max(1, scale * count)


def test_split_that_says_nothing_leaves_the_temperature_at_one() -> None:
    log_joints, labels = drawn(1.0, 5)

    assert fit_temperature(log_joints[:0], labels[:0]) == 1
    assert fit_temperature(log_joints, labels) == 1
    assert cross_fitted_nll(log_joints[:0], labels[:0], seed=0) == (0, 0)


def test_log_joints_that_are_no_numbers_are_refused() -> None:
    log_joints, labels = drawn(1.0, 5)
    log_joints[3, 1] = torch.nan

    with pytest.raises(ValueError, match=r"^log-joints must be finite, got nan: the training has diverged$"):
        fit_temperature(log_joints, labels)


def rarely_wrong(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-joints (N, 10) of a classifier that is calibrated, and wrong eight times among 450 images."""
    generator = torch.Generator().manual_seed(seed)
    log_joints = 60 * torch.randn(count, 10, generator=generator)
    return log_joints, log_joints.softmax(1).multinomial(1, generator=generator)[:, 0]


def test_folds_share_out_every_class_and_every_error() -> None:
    log_joints, labels = alike(450, 5.0)
    labels[:10] = (labels[:10] + 1) % 10  # one error a class

    fold = folds_of(log_joints, labels, seed=3)

    assert torch.bincount(fold).tolist() == [90] * FOLDS
    assert torch.bincount(fold[:10]).tolist() == [2] * FOLDS
    for c in range(10):
        counts = torch.bincount(fold[10:][labels[10:] == c], minlength=FOLDS)
        assert sorted(counts.tolist()) == [8, 9, 9, 9, 9]
    assert torch.equal(fold, folds_of(log_joints, labels, seed=3))
    assert not torch.equal(fold, folds_of(log_joints, labels, seed=4))


def test_cross_fitted_nll_is_of_images_that_their_temperature_has_not_seen() -> None:
    log_joints, labels = drawn(3.0, 200)

    at_one, cross_fitted = cross_fitted_nll(log_joints, labels, seed=0)

    fold, seen = folds_of(log_joints, labels, seed=0), []
    for k in range(FOLDS):
        others, own = fold != k, fold == k
        temperature = fit_temperature(log_joints[others], labels[others])
        seen += surprise(log_joints[own], labels[own], temperature).tolist()
    assert at_one == pytest.approx(surprise(log_joints, labels, 1.0).mean())
    assert cross_fitted == pytest.approx(sum(seen) / 200)
    assert cross_fitted < at_one


def test_temperature_that_helps_is_taken_and_says_so() -> None:
    log_joints, labels = drawn(3.0, 500)

    found = find_temperature(log_joints, labels, seed=0)

    assert found.temperature == found.fitted == fit_temperature(log_joints, labels)
    assert re.fullmatch(
        r"fitted on 500 held-out images: over 5 folds, the NLL of images it was not fitted to goes from \d\.\d{4} to "
        r"\d\.\d{4} nats",
        found.why,
    )


@pytest.mark.parametrize("seed", range(4))
def test_few_errors_by_chance_do_not_make_a_classifier_surer(seed: int) -> None:
    """Three errors among 450 images where eight were due: the likelihood alone would harm unseen images."""
    log_joints, labels = rarely_wrong(25_000, seed)
    unseen = log_joints[-20_000:], labels[-20_000:]
    wrong = log_joints[:5_000].argmax(1) != labels[:5_000]
    chosen = torch.cat([wrong.nonzero()[:3, 0], (~wrong).nonzero()[:447, 0]])

    found = find_temperature(log_joints[chosen], labels[chosen], seed=0)

    likeliest = minimize_scalar(
        lambda log_t: surprise(log_joints[chosen], labels[chosen], np.exp(log_t)).mean(),
        bounds=(-3, 3),
        method="bounded",
    )
    as_it_was = surprise(*unseen, 1.0).mean()
    assert surprise(*unseen, np.exp(likeliest.x)).mean() > as_it_was
    assert surprise(*unseen, found.temperature).mean() <= as_it_was


def test_one_error_alone_does_not_make_a_classifier_less_sure() -> None:
    log_joints, labels = alike(450, 100.0)
    labels[7] = (labels[7] + 1) % 10

    found = find_temperature(log_joints, labels, seed=0)

    assert found.fitted > 5
    assert found.temperature == 1
    assert re.fullmatch(
        r"\d+\.\d+, fitted on 450 held-out images, does not help: over 5 folds, the NLL of images it was not fitted to "
        r"goes from 0\.2222 to \d\.\d{4} nats",
        found.why,
    )


def test_images_too_few_for_the_prior_are_named() -> None:
    assert find_temperature(*drawn(1.0, 5), seed=0).why == "5 held-out images do not outweigh the prior"


@pytest.mark.parametrize("kind", ["mda", "softmax"])
def test_calibration_changes_the_posterior_and_nothing_else(kind: str) -> None:
    torch.manual_seed(0)
    head = HeadSpec(kind=kind, components=2 if kind == "mda" else 1)
    classifier = build_classifier(Architecture((1, 8, 8), 10, EncoderSpec(dim=3, width=4), head)).eval()
    images = digits_from(0, 20).images
    plain = ServedGraph(classifier).eval()(images)
    log_joints = classifier(images).log_joints

    classifier.temperature = 2.5
    posterior, *others = ServedGraph(classifier).eval()(images)

    torch.testing.assert_close(posterior, (log_joints / 2.5).softmax(1))
    assert torch.equal(posterior.argmax(1), plain[0].argmax(1))
    assert all(torch.equal(now, before) for now, before in zip(others, plain[1:], strict=True))

    classifier.class_biases = torch.linspace(-1, 1, 10)
    posterior, *others = ServedGraph(classifier).eval()(images)

    torch.testing.assert_close(posterior, (log_joints / 2.5 + torch.linspace(-1, 1, 10)).softmax(1))
    assert all(torch.equal(now, before) for now, before in zip(others, plain[1:], strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_folder(tmp_path_factory.mktemp("images") / "some-digits")


def trained(folder: Path, runs: Path, temperature: float | str) -> Run:
    data = {"name": "folder", "channels": 1, "size": 8, "validation": 0.3, "test": 0.25}
    refit = {"dim": 4, "ridge": 0.1}  # else the head is too steep for float32 where its temperature stays 1
    found_for = temperature_digest(small_recipe(data=data, refit=refit))
    calibration = {"temperature": temperature, "found_for": found_for}
    recipe = small_recipe(data=data, refit=refit, calibration=calibration)
    run = Run.create("small", recipe, "one", runs)
    train(run, Sources(folder=folder), torch.device("cpu"))
    return run


def test_fitted_temperature_is_kept_exported_and_served(folder: Path, tmp_path: Path) -> None:
    run = trained(folder, tmp_path, "fit")

    bundle = export(run, Sources(folder=folder), tmp_path / "store" / "small" / "1")

    classifier = run.load_classifier()
    assert bundle.manifest.calibration == {"temperature": classifier.temperature, **classifier.calibration}
    assert classifier.calibration["held_out"]["images"] == 27
    assert classifier.calibration["why"]
    images = digits_from(0, 10).images
    expected = classifier.calibrated(classifier(images).log_joints).softmax(1).detach().numpy()
    for runtime in ("onnx", "torchscript"):
        outputs = Predictor(bundle, runtime).infer(images.numpy())
        assert outputs["posterior"] == pytest.approx(expected, abs=1e-4)


def test_given_temperature_is_taken(folder: Path, tmp_path: Path) -> None:
    classifier = trained(folder, tmp_path, 3.25).load_classifier()

    assert (classifier.temperature, classifier.calibration) == (3.25, {"why": "named by the recipe"})


def test_fit_needs_a_validation_split() -> None:
    with pytest.raises(
        RecipeError, match=r"^calibration.temperature fit must have calibration.share or a validation split, got"
    ):
        small_recipe(data={"validation": 0.0}, calibration={"temperature": "fit"})


def test_what_neither_helps_nor_harms_may_make_a_classifier_less_sure_alone() -> None:
    less_sure = FoundTemperature(5.6, 450, 0.12492440, 0.12492441)
    surer = FoundTemperature(0.5, 450, 0.12492441, 0.12492440)

    assert (less_sure.temperature, surer.temperature) == (5.6, 1)
    assert FoundTemperature(5.6, 450, 0.1249, 0.1250).temperature == 1
