"""Every recipe of the project trains: a few steps on a small slice, or on images of its data set's shape."""

import math
from pathlib import Path

import pytest
import torch

from serving.bundle import InputSpec
from training import images as images_module
from training.backbones import backbone_of
from training.data import Dataset, Sources
from training.datasets import load_dataset
from training.evaluate import eager, measure, run_graph
from training.recipe import DataSpec, load_recipe, recipe_names
from training.run import Run
from training.train import train

SHAPES = {"fashion-mnist": (10, 1, 28), "cifar10": (10, 3, 32), "cifar100": (100, 3, 32), "folder": (10, 3, 64)}
TRAINED_HERE = [name for name in recipe_names() if backbone_of(load_recipe(name)[1].encoder.kind) is None]


def slice_of(spec: DataSpec, sources: Sources) -> Dataset:
    """Real digits, or noise around a pattern for each class where the real images do not come in a package."""
    if spec.name in ("digits", "mnist"):
        whole = load_dataset(spec, sources)
        chosen = torch.cat([(whole.labels == label).nonzero()[:24, 0] for label in range(10)])
        return Dataset(spec.name, whole.images[chosen], whole.labels[chosen], whole.classes, whole.input)
    classes, channels, side = SHAPES[spec.name]
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat(max(6, 240 // classes))
    patterns = torch.randint(0, 200, (classes, channels, side, side), generator=generator)
    noise = torch.randint(0, 56, (len(labels), channels, side, side), generator=generator)
    shape = InputSpec.model_validate({"channels": channels, "height": side, "width": side})
    names = tuple(f"class {label}" for label in range(classes))
    return Dataset(spec.name, (patterns[labels] + noise).to(torch.uint8), labels, names, shape)


@pytest.mark.parametrize("name", TRAINED_HERE)
def test_recipe_trains_and_answers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "load_dataset", slice_of)
    holds_out = load_recipe(name)[1].held_out_share > 0
    quick = [
        "fit.epochs=1",
        "fit.scales=[1.0]",
        "data.test=0.25",
        "calibration.share=0.5" if holds_out else "data.validation=0.25",
        "calibration.temperature=fit",
    ]
    run = Run.create(*load_recipe(name, quick), None, tmp_path)

    classifier = train(run, Sources(), torch.device("cpu"))

    test = images_module.load_images(run.recipe, Sources()).part("test", torch.device("cpu"))
    metrics = measure(run_graph(eager(classifier, torch.device("cpu")), test.images), test.labels)
    assert math.isfinite(run.epochs()[0]["loss"])
    assert metrics["images"] >= 60
    assert math.isfinite(metrics["nll"])
    assert classifier.architecture.head.kind == (run.recipe.refit.head if run.recipe.refit else run.recipe.head.kind)


def test_every_recipe_says_what_it_is() -> None:
    for name in recipe_names():
        _, recipe = load_recipe(name)
        assert recipe.description, name
        assert recipe.calibration is not None, name
