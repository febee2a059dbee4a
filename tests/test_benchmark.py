"""The benchmark of training: the notebook's loop trains the same as ours, and the figures add up."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from training_samples import digits, digits_from, project_in, small_recipe
from typer.testing import CliRunner

from training import benchmark
from training.__main__ import app
from training.benchmark import Speed, measure_speed, noise, run_benchmark, table_of_speeds
from training.classifier import Classifier
from training.devices import choose_device
from training.fit import validation_metrics
from training.images import Labelled
from training.recipe import Recipe, load_recipe
from training.stale import state_of

CPU = choose_device("cpu")
SOFTMAX = {"encoder": {"kind": "none", "dim": 64}, "head": {"kind": "softmax"}}


def model(recipe: Recipe, data: Labelled) -> Classifier:
    return benchmark._classifier(recipe, tuple(data.images.shape[1:]), 10, data.images)


def test_both_loops_learn_the_digits() -> None:
    recipe, data, unseen = small_recipe(**SOFTMAX, fit={"epochs": 1}), digits_from(0, 2000), digits_from(2000, 500)
    ours, other = model(recipe, data), model(recipe, data)

    speeds = [
        benchmark.our_epoch(ours, recipe, data),
        benchmark.notebook_epoch(other, recipe, benchmark._loader(recipe, data, other, CPU), CPU),
    ]

    accuracies = [validation_metrics(classifier, unseen)["validation_accuracy"] for classifier in (ours, other)]
    assert min(speeds) > 0
    assert min(accuracies) > 0.8
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.06)


def test_notebooks_images_are_ours() -> None:
    """ToTensor and Normalize on a PIL image give what the classifier makes of the uint8 image."""
    recipe = small_recipe(data={"name": "cifar10"}, fit={"batch_size": 4})
    data, _ = noise(recipe, 12)
    classifier = benchmark._classifier(recipe, (3, 32, 32), 10, data.images)

    loader = benchmark._loader(recipe, data, classifier, CPU)
    items = [loader.dataset[index] for index in range(12)]

    torch.testing.assert_close(
        torch.stack([image for image, _ in items]), classifier.normalise(data.images), rtol=0, atol=1e-5
    )
    assert [label for _, label in items] == data.labels.tolist()
    assert loader.num_workers == 2


def test_notebooks_loop_augments_if_the_recipe_does() -> None:
    recipe = small_recipe(data={"name": "mnist"}, fit={"crop_padding": 2, "flip": True})
    data, _ = noise(recipe, 4)

    loader = benchmark._loader(recipe, data, benchmark._classifier(recipe, (1, 28, 28), 10, data.images), CPU)

    names = [type(step).__name__ for step in loader.dataset.transform.transforms]  # type: ignore[attr-defined]
    assert names == ["RandomCrop", "RandomHorizontalFlip", "ToTensor", "Normalize"]
    assert loader.dataset[0][0].shape == (1, 28, 28)


def test_loops_take_turns_and_the_first_pair_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def ours(*_: object) -> float:
        called.append("ours")
        return 100.0 * len(called)

    def notebook(*_: object) -> float:
        called.append("notebook")
        return 100.0

    monkeypatch.setattr(benchmark, "our_epoch", ours)
    monkeypatch.setattr(benchmark, "notebook_epoch", notebook)
    speed = measure_speed("x", small_recipe(**SOFTMAX), digits_from(0, 200), 10, rounds=2, device=CPU)

    assert called == ["notebook", "ours", "ours", "notebook", "notebook", "ours"]
    assert (speed.ours, speed.notebook) == ((300.0, 600.0), (100.0, 100.0))


def test_figures_are_medians_of_pairs() -> None:
    speed = Speed("x", ours=(300.0, 800.0, 100.0), notebook=(100.0, 200.0, 100.0), images=50)

    assert speed.figures() == {
        "images_per_s": 300.0,
        "notebook_images_per_s": 100.0,
        "ratio": 3.0,
        "ratio_range": [1.0, 4.0],
        "rounds": 3,
        "images": 50,
    }
    assert list(table_of_speeds([speed]).columns[3].cells) == ["3.00"]


def test_first_batch_is_not_on_the_notebooks_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    recipe, data = small_recipe(**SOFTMAX), digits_from(0, 96)
    loader = DataLoader([(data.images[i] / 255, data.labels[i]) for i in range(96)], 32)  # type: ignore[arg-type]

    assert benchmark.notebook_epoch(model(recipe, data), recipe, loader, CPU) == 64 / 2


def test_recipes_are_measured_by_name() -> None:
    (speed,) = run_benchmark(["digits-mda"], None, images=300, rounds=1, device=CPU)

    assert (speed.recipe, speed.images, len(speed.ours)) == ("digits-mda", 300, 1)
    assert speed.ratios[0] > 0


def test_recipes_that_begin_with_small_images_are_measured_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []

    def measured(name: str, recipe: Recipe, data: Labelled, classes: int, **_: object) -> Speed:
        seen.append(recipe)
        return Speed(name, (1.0,), (1.0,), len(data))

    monkeypatch.setattr(benchmark, "measure_speed", measured)
    run_benchmark(["cifar10-lda"], None, images=300, rounds=1, device=CPU)

    assert load_recipe("cifar10-lda")[1].fit.scales[0] < 1
    assert seen[0].fit.scales == (1.0,)


def test_noise_has_the_shape_of_the_data_set() -> None:
    found, classes = noise(small_recipe(), 7)

    assert found.images.shape == (7, *digits().images.shape[1:])
    assert (found.images.dtype, classes) == (torch.uint8, 10)
    assert noise(small_recipe(data={"name": "cifar100"}), 3)[0].images.shape == (3, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        ("digits-mda", 200, "images must be at least two batches of 128, got 200"),
        (
            "cifar10-resnet18-probe",
            9000,
            "encoder.kind must be one that learns from pixels for benchmark, got resnet18",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(name: str, images: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        run_benchmark([name], None, images=images, rounds=1, device=CPU)


def test_command_writes_and_records_each_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project_in(tmp_path)
    arguments = ["benchmark", "digits-mda", "--images", "300", "--rounds", "1", "--device", "cpu", "--record"]

    result = CliRunner().invoke(app, arguments)

    written = json.loads(Path("runs/training-speed.json").read_text())
    recorded = json.loads(Path("docs/results.json").read_text())["training_speed"]
    assert result.exit_code == 0
    assert "digits-mda" in result.output
    assert recorded["digits-mda"].items() >= written["digits-mda"].items()
    assert state_of("training_speed", "digits-mda", recorded["digits-mda"]) == "current"
    assert written["measured"]["versions"]["torch"] == str(torch.__version__)
