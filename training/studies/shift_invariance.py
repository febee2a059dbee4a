"""Does a classifier still know an image that is shifted? An MLP against a convolutional network.

Every test image is shifted by 0 to 8 pixels to the right, left, bottom and top; what comes in is black. Measured over
the four directions: accuracy, the mean probability of the true class, and how often the answer is that of the unshifted
image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from serving.bundle import InputSpec
from training.classifier import Classifier
from training.data import Dataset
from training.evaluate import eager, run_graph
from training.figures import COLOURS, MARKERS, new_figure, percent_axis, save_figure, show_image, tidy
from training.images import Labelled
from training.run import Run, RunError
from training.studies.study import Outcome, Setting, of_runs

SHIFTS = range(9)
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))  # right, left, down, up
RECIPES = ("cifar10-mlp", "cifar10-cnn")
EXAMPLE_SHIFTS = ((0, 0), (2, 0), (4, 0), (6, 0), (0, 2), (0, 4), (2, 2), (4, 4))  # the notebook's: right, down
MEASURES = {
    "accuracy": "accuracy",
    "confidence": "mean probability of the true class",
    "agreement": "same answer as unshifted",
}


@dataclass(frozen=True)
class Measured:
    """One model at one shift, in the mean over images and directions."""

    accuracy: float
    confidence: float
    agreement: float


def shift(images: Tensor, right: int, down: int) -> Tensor:
    """Images (N, channels, H, W) moved by whole pixels, negative for left and up; what comes in is 0."""
    height, width = images.shape[2:]
    moved = torch.zeros_like(images)
    to_rows, from_rows = slice(max(down, 0), height + min(down, 0)), slice(max(-down, 0), height - max(down, 0))
    to_columns, from_columns = slice(max(right, 0), width + min(right, 0)), slice(max(-right, 0), width - max(right, 0))
    moved[:, :, to_rows, to_columns] = images[:, :, from_rows, from_columns]
    return moved


def posterior_of(classifier: Classifier, images: Tensor, device: torch.device, spec: InputSpec) -> NDArray[Any]:
    """p(class | image), (N, C); `spec` is what the classifier takes."""
    posterior: NDArray[Any] = run_graph(eager(classifier, device), images, spec, batch_size=1000)["posterior"]
    return posterior


def measure_shifts(classifier: Classifier, test: Labelled, device: torch.device, spec: InputSpec) -> list[Measured]:
    """One entry a shift, from 0."""
    truth = test.labels.numpy()
    unshifted = posterior_of(classifier, test.images, device, spec).argmax(1)
    curve = []
    for pixels in SHIFTS:
        parts = []
        for right, down in DIRECTIONS if pixels else DIRECTIONS[:1]:
            posterior = posterior_of(classifier, shift(test.images, right * pixels, down * pixels), device, spec)
            answer = posterior.argmax(1)
            of_truth = posterior[np.arange(len(truth)), truth]
            parts.append(((answer == truth).mean(), of_truth.mean(), (answer == unshifted).mean()))
        curve.append(Measured(*(round(float(value), 4) for value in np.mean(parts, axis=0))))
    return curve


def run(setting: Setting) -> Outcome:
    """Measure two finished runs on the test split that they share.

    Raises:
        RunError: if a run is missing, or the two have other images.
    """
    first, second = (setting.run(position, recipe, 2) for position, recipe in enumerate(RECIPES))
    images = setting.images_of(first)
    second.require_same_images(images.dataset)
    test = images.part("test", torch.device("cpu"))
    curves = {}
    for found in (first, second):
        if (name := _name(found, first, second)) in curves:
            raise RunError(f"the two runs must be different ones, got {found.path} twice")
        curves[name] = measure_shifts(found.load_classifier(), test, setting.device, images.dataset.input)
    figures = {"images": len(test), "shifts": list(SHIFTS), "recipes": [first.name, second.name]}
    figures |= {name: {key: [getattr(m, key) for m in curve] for key in MEASURES} for name, curve in curves.items()}
    plot = save_figure(_draw(curves), setting.out / "shift-invariance.png")
    panel = _examples(first, second, test, images.dataset, setting)
    made_from = of_runs([(found.name, found.recipe) for found in (first, second)])
    return Outcome(figures, _table(curves), made_from, (plot, *panel), f"{len(test):,} test images, four directions")


def _name(found: Run, first: Run, second: Run) -> str:
    """The recipe, and the run's id where both are of one recipe."""
    return f"{found.name}/{found.path.name}" if first.name == second.name else found.name


def _table(curves: dict[str, list[Measured]]) -> Table:
    shown = ("accuracy", "agreement")  # more would not fit on a terminal
    table = Table("shift", *[f"{name}\n{key}" for name in curves for key in shown], box=None)
    for pixels in SHIFTS:
        table.add_row(f"{pixels} px", *[f"{getattr(c[pixels], key):.1%}" for c in curves.values() for key in shown])
    return table


def _draw(curves: dict[str, list[Measured]]) -> Any:
    figure, axes = new_figure(11, 3.6, 1, 3, sharey=True)
    for panel, (key, title) in zip(axes[0], MEASURES.items(), strict=True):
        for index, (name, curve) in enumerate(curves.items()):
            values = [getattr(measured, key) for measured in curve]
            panel.plot(SHIFTS, values, marker=MARKERS[index], color=COLOURS[index], label=name)
        tidy(panel, title=title, x="shift, pixels")
        panel.set(ylim=(0, 1.02), xticks=list(SHIFTS))
    percent_axis(axes[0, 0].yaxis)
    axes[0, 0].legend(frameon=False)
    return figure


def _examples(first: Run, second: Run, test: Labelled, dataset: Dataset, setting: Setting) -> tuple[Path, ...]:
    """One image at the notebook's shifts: the first cat (else the first class) that both models are sure of."""
    classes, device, spec = dataset.classes, setting.device, dataset.input
    models = [found.load_classifier() for found in (first, second)]
    wanted = classes.index("cat") if "cat" in classes else 0
    positions = (test.labels == wanted).nonzero()[:, 0]
    sure = np.minimum(*(posterior_of(model, test.images[positions], device, spec)[:, wanted] for model in models))
    best = int(np.argmax(sure > 0.6)) if (sure > 0.6).any() else int(sure.argmax())
    picked = test.images[positions[best]][None]
    figure, axes = new_figure(11, 6.2, 2, 4)
    for panel, (right, down) in zip(axes.flat, EXAMPLE_SHIFTS, strict=True):
        moved = shift(picked, right, down)
        lines = [f"right {right}, down {down} pixels" if right or down else "as it is"]
        for found, model in zip((first, second), models, strict=True):
            posterior = posterior_of(model, moved, device, spec)[0]
            lines.append(f"{_name(found, first, second)}: {classes[posterior.argmax()]} {posterior.max():.0%}")
        show_image(panel, moved[0], "\n".join(lines))
    return (save_figure(figure, setting.out / "shift-invariance-example.png"),)
