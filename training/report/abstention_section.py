"""What a report says of when the network should not decide."""

from collections.abc import Sequence
from typing import Any

from training.report.abstention_plots import risk_coverage, typicality_histogram
from training.report.page import Picture, Section, Table

SMALL_SET = 5  # labels; larger sets are one row
Figures = dict[str, Any]


def abstention_section(figures: Figures, classes: Sequence[str]) -> Section:
    """Risk against coverage; with held-out images prediction sets and the p-values of typicality as well.

    Args:
        figures: as `abstention.abstention_figures` gives them.
        classes: C names.
    """
    text = [
        "A model that answers only where it is sure errs less. AURC is the mean error over all shares of images that "
        "it may answer, the most confident ones first, less is better; E-AURC is the part that a better order of the "
        f"same images would save. On {figures['images']:,} test images: AURC {figures['aurc']:.4f}, "
        f"E-AURC {figures['e_aurc']:.4f}.",
    ]
    header = ["images answered", *(f"{float(share):.0%}" for share in figures["at"])]
    tables = [Table("Error where the least confident are left to a person", header, [_risks(figures["at"])])]
    pictures = [_curve(figures)]
    if figures["sets"] is None:
        text.append("No images were held out, so that neither its sets of labels nor its typicality can be judged.")
        return Section("abstention", "When it should not decide", text, tables, pictures)
    text += [_on_sets(figures["sets"], figures["groups"], len(classes)), _on_typicality(figures["typicality"])]
    tables += [_sets(figures["sets"], classes), *_sizes(figures["sets"])]
    return Section(
        "abstention", "When it should not decide", text, tables, [*pictures, _p_values(figures["typicality"])]
    )


def _risks(at: dict[str, float]) -> list[str]:
    return ["error among them", *(f"{risk:.2%}" for risk in at.values())]


def _curve(figures: Figures) -> Picture:
    half, whole = figures["at"]["0.5"], figures["error"]
    alt = f"Curve of the error from {half:.2%} of the more confident half to {whole:.2%} of all images."
    caption = "The error where only the most confident images are answered."
    return Picture("risk-coverage", caption, alt, risk_coverage(figures))


def _on_sets(sets: Figures, groups: int, classes: int) -> str:
    where = "over all images of this kind, not over those of each class"
    if groups == classes:
        where = "for the images of each class by itself"
    elif groups > 1:
        where = f"for the images of each of {groups} groups of classes that are alike"
    text = (
        "A prediction set holds every label that is possible, so many that the right one is among them for the share "
        f"of images asked for (coverage). That share holds {where}; the sets of one size may miss it. The likeliest "
        "label is always in the set, which makes the coverage at least the accuracy."
    )
    if lost := [coverage for coverage, found in sets.items() if found is None]:
        text += f" Too few images were held out for a coverage of {' and '.join(f'{float(c):.0%}' for c in lost)}."
    return text


def _sets(sets: Figures, classes: Sequence[str]) -> Table:
    header = ["coverage asked for", "found", "labels a set, mean", "of classes, mean", "of the worst class"]
    rows = []
    for asked, found in sets.items():
        if found is not None:
            worst = found["classes"]["worst"][0]
            named = f"{worst['coverage']:.1%} ({classes[worst['class']]}, {worst['images']:,} images)"
            rows.append(
                [f"{float(asked):.0%}", f"{found['coverage']:.2%}", f"{found['mean_size']:.2f}",
                 f"{found['classes']['mean']:.2%}", named]
            )  # fmt: skip
    images = max((found["images"] for found in sets.values() if found), default=0)
    return Table(f"Prediction sets of {images:,} test images", header, rows)


def _sizes(sets: Figures) -> list[Table]:
    """How many images have a set of so many labels, and how often the right one is among them, at 90 % coverage."""
    if (found := sets.get("0.9")) is None:
        return []
    small = [one for one in found["sizes"] if one["labels"] <= SMALL_SET]
    rows = [[_labels(one["labels"]), f"{one['images']:,}", f"{one['coverage']:.1%}"] for one in small]
    if large := [one for one in found["sizes"] if one["labels"] > SMALL_SET]:
        images = sum(one["images"] for one in large)
        coverage = sum(one["images"] * one["coverage"] for one in large) / images
        rows.append([f"more than {SMALL_SET} labels", f"{images:,}", f"{coverage:.1%}"])
    return [Table("Sets at 90 % by their size", ["a set of", "images", "right label among them"], rows)]


def _labels(count: int) -> str:
    return "1 label" if count == 1 else f"{count} labels"


def _on_typicality(figures: Figures) -> str:
    below = [
        f"{found['share']:.2%} [{100 * found['interval'][0]:.2f}, {100 * found['interval'][1]:.2f}] are below "
        f"{float(p):.0%}"
        for p, found in figures["below"].items()
    ]
    shares = " and ".join(f"{float(p):.0%}" for p in figures["below"])
    return (
        f"The typicality of an image is the share of {figures['held_out']:,} held-out images that are no more typical. "
        f"Of the {figures['images']:,} test images {' and '.join(below)}; of images like those that it has learned "
        f"{shares} would be, and the bars would be of one height but for chance."
    )


def _p_values(figures: Figures) -> Picture:
    outside = sum(
        not low <= count <= high
        for count, low, high in zip(figures["count"], figures["low"], figures["high"], strict=True)
    )
    bars = len(figures["count"])
    alt = f"Histogram of typicality with {bars} bars, of which {outside} are outside the range of 95 % of such bars."
    caption = "Test images by their typicality: flat if they are like the held-out images."
    return Picture("typicality", caption, alt, typicality_histogram(figures))
