"""Calibration: the temperature, against a grid, a known truth, and what it must leave alone."""

from pathlib import Path

import pytest
import torch
from training_samples import digits_from, small_recipe, write_digit_folder

from serving.predictor import Predictor
from training.calibrate import fit_temperature
from training.classifier import Architecture, ServedGraph, build_classifier
from training.data import Sources
from training.digests import temperature_digest
from training.export import export
from training.recipe import EncoderSpec, HeadSpec, RecipeError
from training.run import Run
from training.train import train

pytestmark = pytest.mark.isa


def drawn(temperature: float, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-joints (N, 5) and labels that are drawn from softmax(log-joints / temperature)."""
    generator = torch.Generator().manual_seed(0)
    log_joints = 8 * torch.randn(count, 5, generator=generator)
    labels = (log_joints / temperature).softmax(1).multinomial(1, generator=generator)[:, 0]
    return log_joints, labels


@pytest.mark.parametrize("truth", [0.5, 1.0, 7.0])
def test_temperature_of_drawn_labels_is_found(truth: float) -> None:
    assert fit_temperature(*drawn(truth)) == pytest.approx(truth, rel=0.05)


def test_temperature_is_the_best_of_a_grid() -> None:
    log_joints, labels = drawn(3.0, 500)

    fitted = fit_temperature(log_joints, labels)

    def nll(temperature: float) -> float:
        posterior = (log_joints.double() / temperature).softmax(1)
        return -posterior[torch.arange(len(labels)), labels].log().mean().item()

    assert all(nll(fitted) <= nll(fitted * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0))


def test_log_joints_of_any_size_give_a_finite_temperature() -> None:
    log_joints, labels = drawn(1.0, 500)

    assert fit_temperature(1e4 * log_joints, labels) == pytest.approx(1e4, rel=0.2)


@pytest.mark.parametrize("kind", ["mda", "softmax"])
def test_temperature_changes_the_posterior_and_nothing_else(kind: str) -> None:
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_folder(tmp_path_factory.mktemp("images") / "some-digits")


def trained(folder: Path, runs: Path, temperature: float | str) -> Run:
    data = {"name": "folder", "channels": 1, "size": 8, "validation": 0.3, "test": 0.25}
    found_for = temperature_digest(small_recipe(data=data, refit={"dim": 4}))
    calibration = {"temperature": temperature, "found_for": found_for}
    recipe = small_recipe(data=data, refit={"dim": 4}, calibration=calibration)
    run = Run.create("small", recipe, "one", runs)
    train(run, Sources(folder=folder), torch.device("cpu"))
    return run


def test_fitted_temperature_is_kept_exported_and_served(folder: Path, tmp_path: Path) -> None:
    run = trained(folder, tmp_path, "fit")

    bundle = export(run, Sources(folder=folder), tmp_path / "store" / "small" / "1")

    classifier = run.load_classifier()
    assert classifier.temperature != 1
    assert bundle.manifest.calibration == {"temperature": classifier.temperature}
    images = digits_from(0, 10).images
    expected = (classifier(images).log_joints / classifier.temperature).softmax(1).detach().numpy()
    for runtime in ("onnx", "torchscript"):
        outputs = Predictor(bundle, runtime).infer(images.numpy())
        assert outputs["posterior"] == pytest.approx(expected, abs=1e-4)


def test_given_temperature_is_taken(folder: Path, tmp_path: Path) -> None:
    assert trained(folder, tmp_path, 3.25).load_classifier().temperature == 3.25


def test_fit_needs_a_validation_split() -> None:
    with pytest.raises(RecipeError, match=r"^calibration.temperature fit must have a validation split, got"):
        small_recipe(data={"validation": 0.0}, calibration={"temperature": "fit"})
