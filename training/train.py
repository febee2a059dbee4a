"""A recipe carried out: load → split → fit → refit → calibrate → `classifier.pt`."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from serving.errors import DeviceUnavailable
from training.backbones import BACKBONES, backbone_input, load_backbone, normalisation_of, require_weights
from training.calibrate import calibrate
from training.classifier import Architecture, Classifier, build_classifier
from training.data import DataError, Dataset, Sources, Splits, load_dataset, split
from training.features import features_of, head_stage, joined
from training.fit import Labelled, fit
from training.progress import say
from training.recipe import CalibrationSpec, Recipe
from training.refit import check_limits, refit
from training.run import Run


@dataclass(frozen=True)
class LabelledImages:
    """A data set with its splits."""

    dataset: Dataset
    splits: Splits

    def part(self, name: str, device: torch.device) -> Labelled:
        """One split, on a device.

        Raises:
            DataError: if there is no such split.
        """
        if name not in self.splits:
            raise DataError(f"split must be one of {', '.join(self.splits)}, got {name!r}")
        positions = self.splits[name]
        return Labelled(self.dataset.images[positions].to(device), self.dataset.labels[positions].to(device))


def load_images(recipe: Recipe, sources: Sources) -> LabelledImages:
    """The recipe's data set, cut by the recipe's seed."""
    dataset = load_dataset(recipe.data, sources)
    if recipe.encoder.kind in BACKBONES:
        dataset = replace(dataset, input=backbone_input(dataset.input))
    shares = recipe.data
    return LabelledImages(dataset, split(dataset, validation=shares.validation, test=shares.test, seed=recipe.seed))


def images_of(run: Run, sources: Sources) -> LabelledImages:
    """The images that a run was trained on, with their splits.

    Raises:
        RunError: if they are others now.
        DataError: if they are not there.
    """
    images = load_images(run.recipe, sources)
    run.require_same_images(images.dataset)
    return images


def train(run: Run, sources: Sources, device: torch.device) -> Classifier:
    """Carry out `run.recipe`, from the run's checkpoint if it has one, and write `classifier.pt`.

    Raises:
        RunError: if a checkpoint is of other images or of other weights of the backbone.
        ValueError: if the recipe does not fit the images, or the weights the recipe, before any training.
    """
    recipe = run.recipe
    require_weights(recipe.encoder.kind, sources.weights)
    images = load_images(recipe, sources)
    if run.has_checkpoint:
        run.require_same_images(images.dataset)
        run.require_same_weights(sources)
    run.describe(images.dataset, images.splits, sources, device)
    torch.manual_seed(recipe.seed)
    classifier = build_classifier(architecture_of(recipe, images.dataset)).to(device)
    if recipe.refit is not None:
        projection = classifier.encoder.projection
        pooled = projection.in_features if isinstance(projection, nn.Linear) else classifier.architecture.dim
        labels = images.dataset.labels[images.splits["train"]]
        check_limits(recipe.refit, labels, len(images.dataset.classes), pooled)
    if recipe.encoder.kind in BACKBONES:
        classifier = _train_on_features(classifier, run, images, sources)
    else:
        training = images.part("train", device)
        classifier.learn_normalisation(training.images)
        classifier = _train_stages(classifier, run, training, images.part("validation", device))
    run.save_classifier(classifier)
    return classifier.eval()


def _train_on_features(classifier: Classifier, run: Run, images: LabelledImages, sources: Sources) -> Classifier:
    """Give `classifier` its pretrained backbone, and train the rest on what that makes of the images."""
    kind, device = run.recipe.encoder.kind, classifier.mean.device
    classifier.encoder.trunk = load_backbone(kind, sources.weights).to(device)
    mean, std = normalisation_of(kind)
    classifier.mean.copy_(mean)
    classifier.std.copy_(std)
    features = features_of(classifier, images.dataset, sources.cache)
    images = replace(images, dataset=replace(images.dataset, images=features))
    training, validation = images.part("train", device), images.part("validation", device)
    return joined(classifier, _train_stages(head_stage(classifier), run, training, validation))


def _train_stages(classifier: Classifier, run: Run, training: Labelled, validation: Labelled) -> Classifier:
    """Fit, refit and calibrate, as far as the recipe asks for it."""
    recipe = run.recipe
    if recipe.fit.epochs:
        fit(classifier, recipe, training, validation, run)
    if recipe.refit is not None:
        classifier = refit(classifier, recipe.refit, training.images, training.labels, recipe.seed)
    if recipe.calibration is not None:
        _calibrate(classifier, recipe.calibration, validation)
    return classifier


def _calibrate(classifier: Classifier, spec: CalibrationSpec, validation: Labelled) -> None:
    if spec.temperature == "fit":
        calibrate(classifier, validation)
    else:
        classifier.temperature = spec.temperature
    say(f"temperature {classifier.temperature:g}")


def architecture_of(recipe: Recipe, dataset: Dataset) -> Architecture:
    """What to build for a recipe on a data set."""
    shape = dataset.input.channels, dataset.input.height, dataset.input.width
    return Architecture(shape, len(dataset.classes), recipe.encoder, recipe.head)


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda`.

    Raises:
        DeviceUnavailable: if CUDA was asked for and is not there.
        ValueError: if the name is another.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise DeviceUnavailable("device must be there, got cuda on a machine without a usable GPU: try --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def sources_of(run: Run, data_root: Path, folder: Path | None = None, weights: Path | None = None) -> Sources:
    """Where a run's images and weights are: `folder` and `weights` if given, else those that the run was begun with."""
    description = run.description()
    if folder is None and (recorded := description.get("folder")):
        folder = Path(recorded)
    if weights is None and (recorded := description.get("weights_file")):
        weights = Path(recorded)
    return Sources(data_root, folder, weights)
