"""The study of photographs as a table: accuracy by images a class and method, and how well `images` is calibrated.

head, rows = rows_of_photos(figures)  # of training/studies/photographs.py
"""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

METHODS = ("images", "logistic regression", "k-NN", "images-small")
SCALINGS = {"logistic regression": ("logistic regression, raw", "logistic regression, standardised")}
ABOUT = (
    "Accuracy on the test images, mean ± standard deviation over draws of the training images; every method learns "
    "from the same ones. Logistic regression and k-NN are on the same features, the former scaled or not, whichever is "
    "better; C and k by cross-validation."
)
HEAD = ("images of", "a class", "draws", *METHODS, "images: ECE", "images: NLL", "test images")


class Spread(NamedTuple):
    """Mean and standard deviation over draws; 0 for a single one."""

    mean: float
    deviation: float


def spread_of(values: Sequence[float]) -> Spread:
    """Of a figure of every draw."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else 0.0)


def accuracies_of(measured: dict[str, Any], method: str) -> list[float]:
    """Of every draw, none if it was not measured; of a method with two scalings the one that is better in the mean.

    Args:
        measured: figures of one size, by method.
        method: one of `METHODS`.
    """
    names = SCALINGS.get(method, (method,))
    found: list[float] = max((measured[name]["accuracy"] for name in names if name in measured), key=mean, default=[])
    return found


def rows_of_photos(figures: dict[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Head and rows, one for each set and number of images a class."""
    rows: list[Sequence[str]] = []
    for name, of_set in figures["sets"].items():
        for size, measured in of_set["by_images_a_class"].items():
            ours = measured["images"]
            accuracies = [_percent(accuracies_of(measured, method)) for method in METHODS]
            nll = f"{mean(ours['nll']):.3f}"
            draws, tested = str(len(ours["accuracy"])), f"{of_set['test_images']:,}"
            rows.append((name, size, draws, *accuracies, f"{100 * mean(ours['ece']):.1f} %", nll, tested))
    return HEAD, rows


def _percent(values: Sequence[float]) -> str:
    if not values:
        return ""
    found = spread_of(values)
    deviation = f" ± {100 * found.deviation:.1f}" if len(values) > 1 else ""
    return f"{100 * found.mean:.1f}{deviation} %"
