"""What the trials of a sweep begin with: images on the device, prepared once, and a classifier with fresh weights."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from training.classifier import Classifier, build_classifier
from training.data import Dataset, Sources
from training.images import Labelled, load_images
from training.recipe import DataSpec, Recipe
from training.train import architecture_of


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
    _prepared: dict[tuple[DataSpec, float, int], Prepared] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> Prepared:
        """The images of a recipe."""
        key = (recipe.data, recipe.held_out_share, recipe.seed)
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


def fresh_classifier(recipe: Recipe, images: Prepared) -> Classifier:
    """The classifier that training the recipe on these images would begin with."""
    torch.manual_seed(recipe.seed)
    classifier = build_classifier(architecture_of(recipe, images.dataset)).to(images.train.images.device)
    classifier.mean.copy_(images.mean)
    classifier.std.copy_(images.std)
    return classifier
