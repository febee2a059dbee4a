"""What a report says: its sections, from the figures of `report.report_figures` and the network's own answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.analysis.evidence import Evidence
from training.analysis.linear import pixel_templates
from training.calibration_error import TRADE, trades_ece_for_nll
from training.recipe import dump_recipe
from training.report import feature_plots, image_plots, plots
from training.report.abstention_section import abstention_section
from training.report.components_section import SEVERAL, components_section
from training.report.facts import facts_in_words
from training.report.galleries import close_classes, confused_images
from training.report.page import Picture, Section, Table
from training.report.strangers_section import strangers_section

SHOWN = 10  # classes in colour in the feature plane
COMPONENTS_SHOWN = 30  # there
ECE_NAMES = {"ece": "ECE, 15 bins of equal width", "ece_equal_mass": "ECE, 15 bins of equal mass"}

Figures = dict[str, Any]


def sections_of(evidence: Evidence, figures: Figures, *, images: bool) -> list[Section]:
    """The sections that apply to a run, in order.

    Args:
        evidence: the network's answers.
        figures: as `report.report_figures` gives them.
        images: whether to show images of the data set.
    """
    sections = [
        at_a_glance(figures),
        training_section(evidence),
        errors_section(evidence, figures, images=images),
        calibration_section(figures),
        features_section(evidence, figures, images=images),
        components_section(evidence, figures, images=images),
        templates_section(evidence),
        abstention_section(figures["abstention"], evidence.dataset.classes),
        strangers_section(figures["ood"]),
        Section("recipe", "Recipe", ["The resolved recipe, defaults included."], code=dump_recipe(evidence.run.recipe)),
    ]
    return [section for section in sections if section is not None]


def at_a_glance(figures: Figures) -> Section:
    """Metrics before and after calibration, and the facts of the run."""
    calibration, run = figures["calibration"], figures["run"]
    header = ["test split", "accuracy", "NLL, nats", "Brier score", *ECE_NAMES.values()]
    names = {"before": "before calibration, T = 1", "after": f"as served, {calibration['served_at']}"}
    if calibration["served_at"] is None:
        names = {"after": "not calibrated, T = 1"}
    rows = [_metrics_row(name, calibration[key]) for key, name in names.items()]
    count = calibration["after"]["images"]
    metrics = Table(f"Metrics on the {count:,} images of the test split [95 % interval over such images]", header, rows)
    return Section(
        "glance", "At a glance", tables=[metrics, Table("The run", [], facts_in_words(run, figures["log_density"]))]
    )


def training_section(evidence: Evidence) -> Section | None:
    """Learning curves."""
    epochs = evidence.run.epochs()
    if not epochs:
        return None
    text = "Loss and accuracy on the training images are means over an epoch's batches, augmented and while learning."
    alt = f"Curves over {len(epochs)} epochs; the last loss is {epochs[-1]['loss']:.4g}."
    curves = Picture("curves", "Each epoch of the training.", alt, plots.learning_curves(epochs), wide=True)
    return Section("training", "Training", [text], pictures=[curves])


def errors_section(evidence: Evidence, figures: Figures, *, images: bool) -> Section:
    """Confusion matrix, confused pairs, accuracy per class."""
    classes, pairs = evidence.dataset.classes, figures["confused_pairs"]
    counts = np.array(figures["confusion"])
    wrong = int(counts.sum() - counts.trace())
    pictures = [
        Picture(
            "confusion",
            "Rows are true classes, columns predictions; the colour is the share of the row, on a root scale.",
            f"Confusion matrix of {len(classes)} classes with {wrong} errors.",
            plots.confusion_matrix(counts, classes),
        )
    ]
    if pairs:
        first = f"{classes[pairs[0]['truth']]} taken for {classes[pairs[0]['prediction']]}, {pairs[0]['count']} times"
        figure = plots.confused_pairs_bars(pairs, classes)
        pictures.append(Picture("pairs", "The most frequent confusions.", f"Bars; the longest: {first}.", figure))
    pictures.append(_accuracies(figures["class_accuracy"], classes))
    if images and pairs:
        pictures.append(confused_images(evidence, pairs))
    text = f"{wrong:,} of {counts.sum():,} test images are given the wrong class."
    return Section("errors", "Where it is wrong", [text], pictures=pictures)


def calibration_section(figures: Figures) -> Section:
    """Reliability and confidence before and after calibration, and how that was come by."""
    calibration = figures["calibration"]
    text = [
        "A calibrated classifier is right about 80 % of the images of which it is 80 % sure: its bars end on the "
        "diagonal. The temperature T divides the log-joints before they become probabilities; it changes no decision. "
        "A bias a class is added then, where that helps images that it was not fitted to."
    ]
    if "why" in calibration:
        text.append(f"T = {calibration['temperature']:.4g}: {calibration['why']}.")
    if "class_biases" in calibration:
        text.append(f"Biases {calibration['class_biases']['why']}.")
    if trades_ece_for_nll(calibration["before"], calibration["after"]):
        text.append(f"The NLL falls and the ECE rises: {TRADE}.")
    before, after = (
        f"NLL {calibration[name]['nll']:.4f} and ECE {calibration[name]['ece']:.2%}" for name in ("before", "after")
    )
    alt = f"Reliability diagrams and histograms of the confidence; {before} at T = 1, {after} as served."
    caption = "Above: accuracy per bin of confidence. Below: how many images each bin holds."
    is_wide = calibration["served_at"] is not None
    picture = Picture("calibration", caption, alt, plots.calibration(calibration), wide=is_wide)
    return Section("calibration", "How sure it is", text, pictures=[picture])


def features_section(evidence: Evidence, figures: Figures, *, images: bool) -> Section:
    """The feature plane and the distances of the classes."""
    classes, distances = evidence.dataset.classes, figures["class_distances"]
    shown = _shown_classes(figures)
    mixtures = feature_plots.gaussians_of(evidence.classifier.head)
    train = evidence.train
    plane = feature_plots.feature_plane(train.features, train.labels, mixtures, classes, shown)
    caption = f"Features of training images, {len(shown)} of {len(classes)} classes in colour."
    if mixtures is not None:
        caption += " Crosses are component means; ellipses are one (solid) and two (dotted) standard deviations"
        caption += ", numbers weights, where there is room." if mixtures.means.shape[1] > 1 else "."
    pictures = [Picture("plane", caption, f"Scatter plot of the features of {len(classes)} classes.", plane, wide=True)]
    tables = []
    if len(classes) > 2:
        alt = f"Histogram of {len(distances['distance'])} distances from {distances['distance'][0]:.3g} up."
        histogram = feature_plots.distance_histogram(distances["distance"])
        pictures.append(Picture("distances", "How far apart the classes' mean features are.", alt, histogram))
        closest = list(zip(distances["pairs"], distances["distance"], strict=True))[:5]
        rows = [[f"{classes[a]} and {classes[b]}", f"{distance:.3g}"] for (a, b), distance in closest]
        tables.append(Table("The closest classes, by their mean features", ["classes", "distance"], rows))
    if images:
        pictures.append(close_classes(evidence, distances["pairs"]))
    text = f"The head sees {figures['run']['dim']} features of each image."
    return Section("features", "What the features are like", [text], tables, pictures)


def templates_section(evidence: Evidence) -> Section | None:
    """Weights in the pixels; None unless the whole network is linear."""
    templates = pixel_templates(evidence.classifier)
    if templates is None:
        return None
    classes = evidence.dataset.classes
    figure = image_plots.weight_templates(templates, classes)
    caption = "Red: bright pixels there speak for the class; blue: against it. Each template has its own scale."
    picture = Picture("templates", caption, f"Weights in the pixels for {len(classes)} classes.", figure, wide=True)
    text = "The network is linear from pixels to logits, so that its weights can be seen as one template a class."
    return Section("templates", "What it looks for", [text], pictures=[picture])


def _metrics_row(name: str, metrics: Figures) -> list[str]:
    ends = metrics["intervals"]
    accuracy = f"{metrics['accuracy']:.2%} [{_percents(ends['accuracy'])}]"
    nll = f"{metrics['nll']:.4f} [{ends['nll'][0]:.4f}, {ends['nll'][1]:.4f}]"
    eces = (f"{metrics[key]:.2%} [{_percents(ends[key])}]" for key in ECE_NAMES)
    return [name, accuracy, nll, f"{metrics['brier']:.4f}", *eces]


def _percents(ends: Sequence[float]) -> str:
    return ", ".join(f"{100 * end:.2f}" for end in ends)


def _accuracies(accuracy: Sequence[float], classes: Sequence[str]) -> Picture:
    worst = int(np.argmin(accuracy))
    caption = "Accuracy per class, the lowest first."
    if len(classes) > SEVERAL:
        caption = f"The {SEVERAL} classes of {len(classes)} with the lowest accuracy."
    alt = f"Accuracy per class, from {min(accuracy):.1%} ({classes[worst]}) to {max(accuracy):.1%}."
    return Picture("accuracy", caption, alt, plots.class_accuracy_bars(accuracy, classes))


def _shown_classes(figures: Figures) -> list[int]:
    """At most ten classes, of about 30 components: those in the most frequent confusions, filled up with the first."""
    most = min(SHOWN, max(3, COMPONENTS_SHOWN // figures["run"]["components"]))
    confused = [pair[key] for pair in figures["confused_pairs"] for key in ("truth", "prediction")]
    everything = range(len(figures["class_accuracy"]))
    return sorted(list(dict.fromkeys([*confused, *everything]))[:most])
