"""Trainings that leave nothing on disk: for sweeps and benchmarks, which make hundreds of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import progress
from training.classifier import build_classifier
from training.data import Dataset, Sources
from training.fit import Labelled, fit, score
from training.recipe import DataSpec, Recipe
from training.refit import refit
from training.run import Run
from training.train import architecture_of, load_images

Epoch = dict[str, Any]


def _nothing(_: Epoch) -> None:
    pass


@dataclass(frozen=True)
class UnsavedRun(Run):
    """A run whose epochs are kept in memory and whose checkpoints are not kept at all.

    Attributes:
        on_epoch: called with the metrics of each epoch; what it raises ends the training.
        lines: the metrics so far.
    """

    on_epoch: Callable[[Epoch], None] = _nothing
    lines: list[Epoch] = field(default_factory=list)

    @classmethod
    def of(cls, recipe: Recipe, on_epoch: Callable[[Epoch], None] = _nothing) -> "UnsavedRun":
        """A run of `recipe` that is nowhere."""
        return cls(Path("unsaved/run"), recipe, on_epoch)

    @property
    def has_checkpoint(self) -> bool:
        """Never."""
        return False

    def load_checkpoint(self) -> Epoch | None:
        """None: every training begins at its beginning."""
        return None

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Forget the state."""

    def log_epoch(self, metrics: Epoch) -> None:
        """Keep an epoch's metrics."""
        self.lines.append(metrics)
        self.on_epoch(metrics)

    def epochs(self) -> list[Epoch]:
        """The metrics so far."""
        return list(self.lines)


@dataclass(frozen=True)
class Prepared:
    """A data set on the device, with mean and standard deviation of the training images per channel."""

    dataset: Dataset
    train: Labelled
    validation: Labelled
    mean: Tensor
    std: Tensor


@dataclass
class Images:
    """The images of the trials, prepared once for as long as data and seed stay the same."""

    sources: Sources
    device: torch.device
    _prepared: dict[tuple[DataSpec, int], Prepared] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> Prepared:
        """The images of a recipe."""
        key = (recipe.data, recipe.seed)
        if key not in self._prepared:
            self._prepared.clear()
            self._prepared[key] = self._prepare(recipe)
        return self._prepared[key]

    def _prepare(self, recipe: Recipe) -> Prepared:
        images = load_images(recipe, self.sources)
        train, validation = (images.part(name, self.device) for name in ("train", "validation"))
        probe = build_classifier(architecture_of(recipe, images.dataset)).to(self.device)
        probe.learn_normalisation(train.images)
        return Prepared(images.dataset, train, validation, probe.mean, probe.std)


def train_once(recipe: Recipe, images: Prepared, on_epoch: Callable[[Epoch], None]) -> float:
    """Train a recipe without a trace; its accuracy on the validation split.

    Raises:
        DivergedError: if the loss is no number.
    """
    run = UnsavedRun.of(recipe, on_epoch)
    torch.manual_seed(recipe.seed)
    classifier = build_classifier(architecture_of(recipe, images.dataset)).to(images.train.images.device)
    classifier.mean.copy_(images.mean)
    classifier.std.copy_(images.std)
    with silence():
        fit(classifier, recipe, images.train, images.validation, run)
        if recipe.refit is None:
            return float(run.epochs()[-1]["validation_accuracy"])
        classifier = refit(classifier, recipe.refit, images.train.images, images.train.labels, recipe.seed)
        return score(classifier, images.validation)["validation_accuracy"]


@contextmanager
def silence() -> Iterator[None]:
    """Keep `training.progress` from showing bars and lines."""
    before, progress.console.quiet = progress.console.quiet, True
    try:
        yield
    finally:
        progress.console.quiet = before
