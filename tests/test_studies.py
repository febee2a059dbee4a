"""Studies: judged by hand-worked cases, torchvision's IoU, and models whose answers are known."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou
from training_samples import project_in, small_recipe
from typer.testing import CliRunner

from serving.bundle import InputSpec
from training.__main__ import app
from training.classifier import Architecture, Classifier, build_classifier
from training.data import Sources
from training.devices import choose_device
from training.digests import digest_of
from training.images import Labelled
from training.recipe import EncoderSpec, HeadSpec, load_recipe
from training.run import Run, RunError
from training.stale import state_of
from training.studies import MADE_FROM, STUDIES, box_regression, boxes, parameter_growth, shift_invariance
from training.studies.study import Setting, newest, of_runs
from training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = choose_device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ with two finished runs of small models of the digits: cifar10-mlp/a, cifar10-cnn/a."""
    folder = tmp_path_factory.mktemp("runs")
    encoders = {
        "cifar10-mlp": {"kind": "mlp", "hidden": [16], "dim": 9},
        "cifar10-cnn": {"kind": "six-conv", "width": 4},
    }
    for name, encoder in encoders.items():
        recipe = small_recipe(encoder={"dim": 9, **encoder}, fit={"epochs": 2})
        train(Run.create(name, recipe, "a", folder), Sources(), CPU)
    return folder


# Boxes


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ((0.5, 0.5, 0.2, 0.2), (0.5, 0.5, 0.2, 0.2), 1.0),
        ((0.25, 0.5, 0.5, 1.0), (0.75, 0.5, 0.5, 1.0), 0.0),  # side by side
        ((0.25, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0), 0.5),  # the left half of everything
        ((0.5, 0.5, 0.4, 0.4), (0.7, 0.5, 0.4, 0.4), 1 / 3),  # half of each: 0.08 of 0.24
        ((0.4, 0.4, 0.4, 0.4), (0.6, 0.6, 0.4, 0.4), 1 / 7),  # a quarter of each: 0.04 of 0.28
        ((0.1, 0.1, 0.1, 0.1), (0.9, 0.9, 0.1, 0.1), 0.0),  # apart in both directions
        ((0.5, 0.5, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0), 0.0),  # nothing and nothing
    ],
)
def test_iou_of_hand_worked_boxes(predicted: tuple, truth: tuple, expected: float) -> None:
    assert boxes.iou(torch.tensor([predicted]), torch.tensor([truth])).item() == pytest.approx(expected, abs=1e-6)


def test_iou_is_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, others = (torch.rand((200, 4), generator=generator) for _ in range(2))

    def corners(found: Tensor) -> Tensor:
        return torch.cat([found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2], 1)

    expected = box_iou(corners(ours), corners(others)).diagonal()
    torch.testing.assert_close(boxes.iou(ours, others), expected)
    assert (expected > 0).float().mean() > 0.5


def test_squares_are_the_notebooks() -> None:
    x, y = 5, 20
    canvas = np.zeros((1, 64, 64), dtype=np.float32)  # as the notebook writes it
    canvas[0, y : y + 16, x : x + 16] = 1.0
    canvas[0, y + 3 : y + 16 - 3, x + 3 : x + 16 - 3] = 0.4

    found = boxes.squares(torch.tensor([[x, y]]))

    assert np.array_equal(found[0].numpy(), canvas)
    assert boxes.boxes_of(torch.tensor([[x, y]])).tolist() == [[(x + 8) / 64, (y + 8) / 64, 0.25, 0.25]]


def test_square_beyond_the_edge_is_cut_and_counts_as_at_the_edge() -> None:
    moved = boxes.squares(torch.tensor([[36, 8]]) + 16)[0, 0]

    assert moved[24:40, 52:].min() > 0
    assert (moved > 0).sum() == 16 * 12
    assert box_regression.truth_at(torch.tensor([[36, 8]]), 16).tolist() == [[(48 + 8) / 64, (24 + 8) / 64, 0.25, 0.25]]


def test_training_squares_have_the_notebooks_noise_and_places() -> None:
    images, truth = boxes.training_set(400, seed=1)

    corners = truth[:, :2] * 64 - 8
    assert images.shape == (400, 1, 64, 64)
    assert (images.min(), images.max()) == (0, 1)
    assert (corners.min(), corners.max()) == (0, 47)
    dark = images[:, :, 0, 0][(corners > 0).all(1)]  # noise of deviation s, cut at 0, has the mean s / sqrt(2 pi)
    assert dark.mean().item() == pytest.approx(0.05 / math.sqrt(2 * math.pi), rel=0.25)
    assert torch.equal(boxes.training_set(400, seed=1)[0], images)


def test_networks_have_the_notebooks_layers() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(boxes.mlp()) == 4096 * 512 + 512 + 512 * 256 + 256 + 256 * 4 + 4
    assert count(boxes.cnn()) == 9 * 16 + 16 + 9 * 16 * 32 + 32 + 9 * 32 * 64 + 64 + 4096 * 256 + 256 + 256 * 4 + 4
    for model in (boxes.mlp(), boxes.cnn()):
        assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 4)


class FindsTheSquare(nn.Module):
    """The box around everything that is bright: right for every whole square."""

    def forward(self, images: Tensor) -> Tensor:
        answers = []
        for image in images[:, 0]:
            rows, columns = (image > 0.2).nonzero().T
            low, high = torch.stack([columns.min(), rows.min()]), torch.stack([columns.max(), rows.max()]) + 1
            answers.append(torch.cat([(low + high) / 2, (high - low).float()]) / 64)
        return torch.stack(answers)


def test_perfect_model_is_perfect_but_for_squares_that_are_cut() -> None:
    measured = box_regression.mean_overlaps(FindsTheSquare())

    # Moved to x = 52, 12 of 16 columns are left, of which 12 lie in the box from 48 to 64: 192 of 256.
    assert measured["notebook, shifted, cut squares"] == pytest.approx(192 / 256)
    assert measured["notebook, shifted"] == pytest.approx((2 + 2 * 192 / 256) / 4)
    for case in set(box_regression.CASES) - {"notebook, shifted, cut squares", "notebook, shifted"}:
        assert measured[case] == pytest.approx(1.0)


def test_box_regression_learns_and_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_regression, "REGRESSORS", {"MLP": boxes.mlp})

    outcome = box_regression.run(Setting(tmp_path), seeds=2, epochs=4, images=400)

    means, by_seed = outcome.figures["iou"]["MLP"], outcome.figures["iou_by_seed"]["MLP"]
    assert means["grid, original"] > 0.3
    assert means["grid, original"] == pytest.approx(sum(by_seed["grid, original"]) / 2, abs=1e-4)
    assert outcome.made_from == digest_of(box_regression.parameters(seeds=2, epochs=4, images=400))
    assert outcome.made_from != digest_of(box_regression.parameters(seeds=2, epochs=4, images=401))
    assert (
        state_of("studies", "box-regression", {"digest": outcome.made_from}) == "stale"
    )  # recorded ones have more seeds
    assert [file.name for file in outcome.files] == ["box-regression.png"]
    assert outcome.files[0].read_bytes().startswith(b"\x89PNG")


# Parameters


def test_parameters_are_those_that_the_notebook_counts(tmp_path: Path) -> None:
    outcome = parameter_growth.run(Setting(tmp_path))

    mlp, flattened, pooled = (list(row.values()) for row in outcome.figures["parameters"].values())
    assert mlp == [820_874, 50_366_090, 707_823_242, 6_370_133_642]
    assert flattened[0] == 268_650
    assert len(set(pooled)) == 1
    assert (tmp_path / "parameter-growth.png").exists()


@pytest.mark.parametrize("encoder", [{"kind": "mlp", "hidden": (8, 4)}, {"kind": "six-conv", "width": 3}])
def test_models_without_memory_have_as_many_parameters_as_real_ones(encoder: dict) -> None:
    real = build_classifier(Architecture((3, 8, 12), 10, EncoderSpec(**encoder), HeadSpec(kind="softmax")))

    counted = parameter_growth.count_parameters(encoder.pop("kind"), 12, 8, **encoder)

    assert counted == sum(parameter.numel() for parameter in real.parameters())


# Shifts


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (-3, 0), (0, 1), (0, -4), (2, 2), (-1, 5)])
def test_shift_is_rolling_with_the_border_black(right: int, down: int) -> None:
    images = torch.randint(1, 256, (2, 3, 6, 7), dtype=torch.uint8)

    moved = shift_invariance.shift(images, right, down)

    rolled = torch.roll(images, (down, right), (2, 3))
    kept = moved > 0
    assert kept.sum() == 2 * 3 * (6 - abs(down)) * (7 - abs(right))
    assert torch.equal(moved[kept], rolled[kept])


def test_shift_by_the_whole_image_leaves_nothing() -> None:
    assert shift_invariance.shift(torch.ones(1, 1, 4, 4, dtype=torch.uint8), 4, 0).sum() == 0


class Looks(nn.Module):
    """Logits of two classes: ten times as much for the second if the column is bright; or if anything is."""

    def __init__(self, column: int | None):
        super().__init__()
        self.column = column

    def forward(self, images: Tensor) -> Tensor:
        seen = images if self.column is None else images[..., self.column]
        bright = (seen.flatten(1).max(1).values > 0).float()
        return torch.stack([10 * (1 - bright), 10 * bright], 1)


def looking(column: int | None) -> Classifier:
    architecture = Architecture((1, 20, 20), 2, EncoderSpec(kind="linear", dim=2), HeadSpec(kind="softmax"))
    classifier = build_classifier(architecture).eval()
    classifier.encoder = Looks(column)  # type: ignore[assignment]
    with torch.no_grad():
        classifier.head.linear.weight.copy_(torch.eye(2))  # type: ignore[union-attr]
        classifier.head.linear.bias.zero_()  # type: ignore[union-attr]
    return classifier


def test_shifts_of_models_whose_answers_are_known() -> None:
    """A point in the middle: who looks anywhere sees it at any shift; who looks at its column loses it to the sides."""
    images = torch.zeros(4, 1, 20, 20, dtype=torch.uint8)
    images[2:, 0, 10, 10] = 255
    labels = torch.tensor([0, 0, 1, 1])
    sure = 1 / (1 + math.exp(-10))
    test, spec = Labelled(images, labels), InputSpec(channels=1, height=20, width=20)

    anywhere = shift_invariance.measure_shifts(looking(None), test, CPU, spec)
    column = shift_invariance.measure_shifts(looking(10), test, CPU, spec)

    assert [(m.accuracy, m.agreement) for m in anywhere] == [(1.0, 1.0)] * 9
    assert column[0] == anywhere[0]
    # Half of the images have a point; half of the directions move it out of the column: a quarter is lost.
    assert [(m.accuracy, m.agreement) for m in column[1:]] == [(0.75, 0.75)] * 8
    assert column[5].confidence == pytest.approx(0.75 * sure + 0.25 * (1 - sure), abs=1e-4)


def test_shift_study_takes_the_newest_runs(runs: Path, tmp_path: Path) -> None:
    outcome = STUDIES["shift-invariance"](Setting(tmp_path, folder=runs))

    curve = outcome.figures["cifar10-cnn"]
    assert outcome.figures["images"] == 1797
    assert curve["agreement"][0] == 1.0
    assert curve["accuracy"][0] > 0.7 > curve["accuracy"][4]
    assert [file.name for file in outcome.files] == ["shift-invariance.png", "shift-invariance-example.png"]
    assert outcome.figures["recipes"] == ["cifar10-mlp", "cifar10-cnn"]
    recorded = {**outcome.figures, "digest": outcome.made_from}
    assert state_of("studies", "shift-invariance", recorded) == "stale"  # the runs are of small recipes of that name


def test_shift_study_takes_runs_that_are_named(runs: Path, tmp_path: Path) -> None:
    same = (runs / "cifar10-mlp/a", runs / "cifar10-mlp/a")

    with pytest.raises(RunError, match=r"^the two runs must be different ones, got .*/cifar10-mlp/a twice$"):
        shift_invariance.run(Setting(tmp_path, runs=same))
    with pytest.raises(RunError, match=r"^--run must be given 2 times or not at all, got 1 times$"):
        shift_invariance.run(Setting(tmp_path, runs=same[:1]))


def test_runs_that_are_missing_can_be_trained(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(
        RunError, match=r"^cifar10-mlp must have a finished run, got none .* training train cifar10-mlp "
    ):
        STUDIES["shift-invariance"](Setting(tmp_path, folder=tmp_path))
    assert newest("cifar10-mlp", runs).path == (runs / "cifar10-mlp/a").resolve()


# Class means


def test_class_means_study_names_the_closest(runs: Path, tmp_path: Path) -> None:
    outcome = STUDIES["class-means"](Setting(tmp_path, runs=(runs / "cifar10-mlp/a",)))

    closest = outcome.figures["closest"]
    assert len(closest) == 5
    assert list(closest.values()) == sorted(closest.values())
    assert all(re.fullmatch(r"\d and \d", pair) for pair in closest)
    assert outcome.figures["pairs"] == 45
    assert outcome.made_from == of_runs([("cifar10-mlp", Run.open(runs / "cifar10-mlp/a").recipe)])
    assert of_runs([("cifar10-mlp", load_recipe("cifar10-mlp")[1])]) == MADE_FROM["class-means"]({"run": "cifar10-mlp"})
    assert [file.name for file in outcome.files] == ["class-means.png", "class-means-example.png"]
    file = outcome.write(tmp_path, "class-means")
    assert json.loads(file.read_text()) == outcome.figures


def test_other_images_than_the_runs_are_refused(runs: Path, tmp_path: Path) -> None:
    run = Run.open(runs / "cifar10-mlp/a")
    other = replace(run, recipe=small_recipe(data={"name": "mnist"}))

    with pytest.raises(RunError, match=r"^images must be those that .* was trained on"):
        Setting(tmp_path).images_of(other)


# The command


def test_command_writes_figures_and_records_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project_in(tmp_path)

    result = CliRunner().invoke(app, ["study", "parameter-growth", "--record", "--device", "cpu"])

    folder = Path("runs/studies/parameter-growth")
    figures = json.loads((folder / "parameter-growth.json").read_text())
    recorded = json.loads(Path("docs/results.json").read_text())["studies"]["parameter-growth"]
    assert result.exit_code == 0
    assert f"{folder}/parameter-growth.png\n" in result.output
    assert recorded["parameters"] == figures["parameters"]
    assert state_of("studies", "parameter-growth", recorded) == "current"


def test_command_knows_its_studies() -> None:
    names = "box-regression, class-means, parameter-growth, photographs, shift-invariance"

    result = CliRunner().invoke(app, ["study", "shapes"])
    help_text = CliRunner().invoke(app, ["study", "--help"]).output

    assert str(result.exception) == f"study must be one of {names}, got 'shapes'"
    assert all(name in help_text for name in STUDIES)
