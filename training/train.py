"""A recipe carried out: load → split → fit → refit → calibrate → `classifier.pt`."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from training import progress
from training.backbones import backbone_of, normalisation_of, require_backbone
from training.calibrate import calibrate, calibrate_by
from training.classifier import Architecture, Classifier, build_classifier
from training.component_calibration import calibrate_components
from training.cross_fit import CrossFitted, cross_fit, judge
from training.data import Dataset, Sources, as_served, batch_count
from training.devices import choose_precision, describe_device
from training.duplicates import in_words
from training.features import FeatureCache, as_images, features_of, head_stage, joined, open_features
from training.fit import fit
from training.images import Labelled, LabelledImages, images_of, load_images
from training.power import with_power
from training.principal import Rows
from training.progress import say, warn
from training.recipe import Recipe
from training.refit import check_limits, refit
from training.refit_spec import RefitSpec
from training.run import Run
from training.splits import require_images
from training.typicality import Scale, Typicality
from training.typicality_fit import directions_of, evidence_of, fit_parts, measured
from training.weights import load_backbone, require_weights

FEWEST_PHOTOS = 5  # of a class, for a head on a backbone's features


def train(run: Run, sources: Sources, device: torch.device) -> Classifier:
    """Carry out `run.recipe`, from the run's checkpoint if it has one, and write `classifier.pt`.

    Raises:
        RunError: if the run, or the one whose epochs it takes, is of other images or other weights of the backbone.
        ValueError: if the recipe does not fit the images, or the weights the recipe. A new run leaves nothing then.
    """
    recipe = run.recipe
    require_weights(recipe.encoder.kind, sources.weights)
    before = run.start or run
    if before.has_begun:
        before.require_same_weights(sources)
    backbone = backbone_alone(recipe, sources, device) if backbone_of(recipe.encoder.kind) else None
    if backbone is not None and not recipe.fine_tunes:
        sources = replace(sources, features=open_features(backbone, sources.cache))
    images = images_of(before, sources) if before.has_begun else load_images(recipe, sources)
    if backbone is not None and recipe.data.name == "folder":
        require_images(images.dataset, FEWEST_PHOTOS)
    torch.manual_seed(recipe.seed)
    classifier = build_classifier(architecture_of(recipe, images.dataset)).to(device)
    _check_refit(classifier, recipe, images)
    if backbone is not None:
        _take_backbone(classifier, backbone)
    _begin(run, images, sources, device)
    if recipe.fine_tunes:
        _fine_tune(classifier, run, images)
        sources = replace(sources, features=open_features(classifier, sources.cache))
    if sources.features is not None:
        classifier = _train_on_features(classifier, run, images, sources.features)
    else:
        training = images.part("train", device)
        classifier.learn_normalisation(training.images)
        validation, calibration = (images.part(name, device) for name in ("validation", _calibrating(images)))
        classifier = _train_stages(classifier, run, training, validation, calibration)
    run.save_classifier(classifier)
    return classifier.eval()


def architecture_of(recipe: Recipe, dataset: Dataset) -> Architecture:
    """What to build for a recipe on a data set."""
    shape = dataset.input.channels, dataset.input.height, dataset.input.width
    return Architecture(shape, len(dataset.classes), recipe.encoder, recipe.head)


def _check_refit(classifier: Classifier, recipe: Recipe, images: LabelledImages) -> None:
    """Refuse before the training what the refit would refuse after it."""
    if recipe.refit is None:
        return
    projection = classifier.encoder.projection
    pooled = projection.in_features if isinstance(projection, nn.Linear) else classifier.architecture.dim
    labels = images.dataset.labels[images.splits["train"]]
    check_limits(recipe.refit, labels, len(images.dataset.classes), pooled)


def _begin(run: Run, images: LabelledImages, sources: Sources, device: torch.device) -> None:
    """Write where, when and in what precision the run begins or goes on, and say it."""
    precision = choose_precision(run.recipe.fit.precision, device)
    if run.has_begun:
        run.resume(sources, device, precision)
    else:
        run.begin(images.dataset, images.splits, sources, device, precision)
        _tell_duplicates(run.description()["duplicates"])
    if run.has_all_epochs:
        say(f"fitting {run.name} into {run.path} on {describe_device(device)}")
        return
    say(f"training {run.name} into {run.path} on {describe_device(device)} in {precision}")
    if precision.warning:
        warn(precision.warning)


def _tell_duplicates(found: dict[str, Any]) -> None:
    tell = warn if found["of_two_classes"]["images"] else say
    for line in in_words(found):
        tell(line)


def backbone_alone(recipe: Recipe, sources: Sources, device: torch.device) -> Classifier:
    """A classifier of which the pretrained trunk and its normalisation are meant, and no head of any data set."""
    spec, backbone = recipe.encoder, require_backbone(recipe.encoder.kind)
    side = backbone.side_seen(spec.side)
    alone = build_classifier(Architecture((3, side, side), 2, spec, recipe.head)).eval()
    network = load_backbone(spec.kind, sources.weights)
    alone.encoder.trunk = (with_power(network, backbone.dim) if spec.power else network).eval()
    mean, std = normalisation_of(spec.kind)
    alone.mean.copy_(mean)
    alone.std.copy_(std)
    return alone.to(device)


def _take_backbone(classifier: Classifier, backbone: Classifier) -> None:
    classifier.encoder.trunk = backbone.encoder.trunk
    classifier.mean.copy_(backbone.mean)
    classifier.std.copy_(backbone.std)


def _fine_tune(classifier: Classifier, run: Run, images: LabelledImages) -> None:
    """Train a pretrained trunk with its projection and head on the pixels; then the trunk is frozen again."""
    device, channels = classifier.mean.device, classifier.architecture.image_shape[0]
    training, validation = images.part("train", device), images.part("validation", torch.device("cpu"))
    training = replace(training, images=training.images.expand(-1, channels, -1, -1))
    if len(validation):
        validation = replace(validation, images=as_served(validation.images, images.dataset.input))
    _fit(classifier, run, training, Labelled(validation.images.to(device), validation.labels.to(device)))
    classifier.encoder.trunk.requires_grad_(False).eval()


class _Features(NamedTuple):
    """Features of a trunk that learns no more, and labels (N,)."""

    images: Rows
    labels: Tensor


def _train_on_features(classifier: Classifier, run: Run, images: LabelledImages, cache: FeatureCache) -> Classifier:
    """Train what follows a frozen backbone on what that makes of the images."""
    device, features, labels = classifier.mean.device, features_of(cache, images.dataset), images.dataset.labels

    def part(name: str) -> Labelled:
        positions = images.splits[name]
        return Labelled(as_images(features[positions]).to(device), labels[positions].to(device))

    positions, is_learning = images.splits["train"], run.recipe.fit.epochs and not run.recipe.fine_tunes
    training = part("train") if is_learning else _Features(Rows(features, positions.numpy()), labels[positions])
    held_out = part("validation"), part(_calibrating(images))
    return joined(classifier, _train_stages(head_stage(classifier), run, training, *held_out))


def _calibrating(images: LabelledImages) -> str:
    """The split that a temperature is fitted to."""
    return "calibration" if "calibration" in images.splits else "validation"


def _train_stages(
    classifier: Classifier, run: Run, training: Labelled | _Features, validation: Labelled, calibration: Labelled
) -> Classifier:
    """Fit, refit and calibrate, as far as the recipe asks for it and the encoder has not learned yet."""
    recipe = run.recipe
    if recipe.fit.epochs and isinstance(training, Labelled):
        _fit(classifier, run, training, validation)
    found = None
    if recipe.refit is not None:
        classifier, spec, found = refitted(classifier, recipe, training)
        _calibrate_components(classifier, recipe, spec, training)
    if recipe.calibration is None:
        return classifier
    if recipe.calibration.temperature != "cross-fit":
        _calibrate(classifier, recipe.calibration.temperature, calibration, recipe.seed)
    say(f"temperature {classifier.temperature:.6g}: {classifier.calibration['why']}")
    if of_classes := classifier.calibration.get("class_biases"):
        say(f"biases of classes {of_classes['why']}")
    if found is not None:
        judged, scale = judge(classifier, found, training.images, training.labels, recipe.seed)
        run.save_judged(judged)
        classifier.typicality = _typicality_of(classifier, training, scale)
    elif recipe.calibration.share:
        classifier.typicality = _typicality_of(classifier, training, calibration)
    return classifier


def _typicality_of(classifier: Classifier, training: Labelled | _Features, unseen: Labelled | Scale) -> Typicality:
    """How typical an image is: fitted to the training images, on the scale of images that the weights have not seen."""
    directions = directions_of(classifier)
    evidence, labels = evidence_of(classifier, training.images), training.labels.cpu().numpy()
    parts = fit_parts(evidence, labels, classifier.architecture.classes, directions)
    if isinstance(unseen, Labelled):
        unseen = Scale.of(measured(parts, evidence_of(classifier, unseen.images), directions))
    return Typicality(parts, unseen).float().to(classifier.mean.device)


class Refitted(NamedTuple):
    """What a refit gives.

    Attributes:
        classifier: the one with the new head.
        spec: how that was fitted, with nothing left open but the number of components.
        found: what heads fitted without them say of the training images, if that gave it its temperature.
    """

    classifier: Classifier
    spec: RefitSpec
    found: CrossFitted | None


def refitted(classifier: Classifier, recipe: Recipe, training: Labelled | _Features) -> Refitted:
    """Fit the head anew; where the recipe leaves it open, or wants the temperature so, by what folds say of it."""
    spec, seed, calibration = recipe.refit, recipe.seed, recipe.calibration
    assert spec is not None
    is_cross_fitted = calibration is not None and calibration.temperature == "cross-fit"
    if spec.head != "auto" and spec.shrinkage != "cross-fit" and not is_cross_fitted:
        return Refitted(refit(classifier, spec, training.images, training.labels, seed), spec, None)
    judged = cross_fit(classifier, spec, training.images, training.labels, seed)
    classifier = refit(classifier, judged.spec, training.images, training.labels, seed)
    if is_cross_fitted:
        calibrate_by(classifier, judged.log_joints, training.labels.cpu(), seed, by="each by a head fitted without it")
    return Refitted(classifier, judged.spec, judged if is_cross_fitted else None)


def _calibrate_components(
    classifier: Classifier, recipe: Recipe, spec: RefitSpec, training: Labelled | _Features
) -> None:
    """Give responsibilities their temperature, if the recipe wants one and the refit has found several components."""
    wanted = "none" if recipe.calibration is None else recipe.calibration.components
    if wanted == "none" or classifier.head.components == 1:
        return
    if isinstance(wanted, str):
        calibrate_components(classifier, spec, training.images, training.labels, recipe.seed)
    else:
        classifier.component_temperature, classifier.component_calibration = wanted, {"why": "named by the recipe"}
    say(f"temperature of components {classifier.component_temperature:.6g}: {classifier.component_calibration['why']}")


def _fit(classifier: Classifier, run: Run, training: Labelled, validation: Labelled) -> None:
    """Train the epochs that the run lacks, and keep the metrics and the state of each."""
    spec, state = run.recipe.fit, run.load_checkpoint()
    steps = batch_count(len(training), spec.batch_size)
    done = 0 if state is None else state["epoch"] * steps
    with progress.steps(run.name, spec.epochs * steps, done) as bar:
        for epoch in fit(classifier, run.recipe, training, validation, state, bar.advance):
            run.log_epoch(epoch.metrics)
            run.save_checkpoint(epoch.state)
            say(_epoch_in_words(epoch.metrics, spec.epochs))


def _epoch_in_words(metrics: dict[str, Any], epochs: int) -> str:
    words = [f"epoch {metrics['epoch']:>3}/{epochs}", f"loss {metrics['loss']:8.4f}"]
    words.append(f"train {metrics['train_accuracy']:7.2%}")
    if "validation_accuracy" in metrics:
        words.append(f"validation {metrics['validation_accuracy']:7.2%}")
    return "  ".join([*words, f"{metrics['images_per_s']:,.0f} images/s"])


def _calibrate(classifier: Classifier, temperature: float | str, validation: Labelled, seed: int) -> None:
    if isinstance(temperature, str):
        calibrate(classifier, validation, seed)
    else:
        classifier.temperature, classifier.calibration = temperature, {"why": "named by the recipe"}
