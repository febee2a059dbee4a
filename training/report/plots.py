"""Charts of a training and its metrics: numbers in, a matplotlib Figure out, nothing shown and no global state.

    learning_curves(run.epochs()).savefig("curves.png")

Colours are those of Okabe and Ito, which the colour-blind can tell apart; maps are of one hue, or cividis.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from training.analysis.familiarity import SCORE_NAMES
from training.figures import COLOURS, INK, new_figure, plain

PALETTE = (*COLOURS, "#000000", "#F0E442")
FAINT = "#BBBBBB"
MANY_CLASSES = 20  # above it, no text in cells and no name for every class


def figure_of(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, and its axes row by row."""
    figure, grid = new_figure(width, height, rows, columns)
    axes = list(grid.flat)
    for ax in axes:
        plain(ax)
    return figure, axes


def shortened(name: str, most: int = 18) -> str:
    """A class name that fits beside an axis; a dollar sign is no mathematics."""
    short = name if len(name) <= most else name[: most - 1] + "…"
    return short.replace("$", r"\$")


def learning_curves(epochs: Sequence[dict[str, Any]]) -> Figure:
    """Loss, accuracy, validation NLL (if there was a validation split) and learning rate per epoch.

    Args:
        epochs: the lines of metrics.jsonl.
    """
    panels = [("loss", ["loss"]), ("accuracy", ["train_accuracy", "validation_accuracy"])]
    panels += [("validation NLL, nats", ["validation_nll"]), ("learning rate", ["lr"])]
    kept = [(title, [key for key in keys if key in epochs[0]]) for title, keys in panels]
    kept = [(title, keys) for title, keys in kept if keys]
    figure, axes = figure_of(2.7 * len(kept), 2.7, len(kept))
    numbers = [line["epoch"] for line in epochs]
    for ax, (title, keys) in zip(axes, kept, strict=True):
        for key, colour, style in zip(keys, PALETTE, ("-", "--"), strict=False):
            marker = "o" if len(epochs) < 3 else None
            ax.plot(
                numbers, [line[key] for line in epochs], style, color=colour, marker=marker, label=key.split("_")[0]
            )
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("epoch", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if title == "accuracy":
            ax.yaxis.set_major_formatter(PercentFormatter(1))
            ax.legend(fontsize=9, frameon=False, loc="lower right")
    return figure


def confusion_matrix(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Share of each class (row) taken for each class (column); counts in the cells of up to 20 classes.

    Args:
        counts: (C, C), see `diagnostics.confusion_counts`.
        classes: C names.
    """
    many = len(classes) > MANY_CLASSES
    side = 6.0 if many else 2.2 + 0.36 * len(classes)
    figure, (ax,) = figure_of(side + 0.6, side)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    image = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.4, 0, 1), interpolation="nearest")
    bar = figure.colorbar(image, ax=ax, shrink=0.8, ticks=[0, 0.01, 0.1, 0.5, 1], format=PercentFormatter(1))
    bar.set_label("share of the class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    ax.grid(visible=False)
    ax.set_ylabel("true class", fontsize=10)
    ax.set_xlabel("predicted class", fontsize=10)
    if not many:
        _name_cells(ax, counts, shares, classes)
    return figure


def confused_pairs_bars(pairs: Sequence[dict[str, Any]], classes: Sequence[str]) -> Figure:
    """Bars of the most frequent confusions, as `diagnostics.confused_pairs` gives them."""
    figure, (ax,) = figure_of(5.4, 0.9 + 0.27 * len(pairs))
    names = [f"{shortened(classes[p['truth']])} → {shortened(classes[p['prediction']])}" for p in pairs]
    bars = ax.barh(range(len(pairs)), [p["count"] for p in pairs], color=PALETTE[0], height=0.7)
    ax.bar_label(bars, [f"{p['count']}  ({p['share']:.1%})" for p in pairs], fontsize=8, padding=3)
    ax.set_yticks(range(len(pairs)), names, fontsize=9)
    ax.invert_yaxis()
    ax.margins(x=0.25)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel("test images (share of the true class)", fontsize=9)
    return figure


def class_accuracy_bars(accuracy: Sequence[float], classes: Sequence[str]) -> Figure:
    """Accuracy per class, lowest first; of more than 20 classes the 20 lowest."""
    order = np.argsort(accuracy, kind="stable")[:MANY_CLASSES]
    mean = float(np.mean(accuracy))
    figure, (ax,) = figure_of(5.4, 1.1 + 0.27 * len(order))
    values = [accuracy[position] for position in order]
    ax.plot(values, range(len(order)), "o", color=PALETTE[0])
    for row, value in enumerate(values):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "bbox": box}
        ax.annotate(f"{value:.1%}", (value, row), fontsize=8, **place)
    ax.axvline(mean, color=PALETTE[1], linestyle="--", linewidth=1, label=f"mean of all classes {mean:.1%}")
    ax.set_yticks(range(len(order)), [shortened(classes[position]) for position in order], fontsize=9)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("accuracy on the test split", fontsize=9)
    figure.legend(fontsize=9, frameon=False, loc="outside upper right")
    return figure


def calibration(figures: dict[str, Any]) -> Figure:
    """Reliability and confidence before and after calibration; once if they are the same.

    Args:
        figures: as `diagnostics.calibration_figures` gives them.
    """
    names = ["before", "after"] if figures["served_at"] else ["after"]
    titles = {"before": "before: T = 1", "after": f"after: {figures['served_at']}"}
    if len(names) == 1:
        titles = {"after": "as trained: T = 1"}
    figure, axes = figure_of(0.6 + 3.7 * len(names), 5.0, len(names), 2)
    for column, name in enumerate(names):
        bins = figures[name]["reliability"]
        upper, lower = axes[column], axes[column + len(names)]
        _reliability(upper, bins)
        measured = f"NLL {figures[name]['nll']:.4f}, ECE {figures[name]['ece']:.2%}"
        upper.set_title(f"{titles[name]}\n{measured}", fontsize=10)
        lower.bar(bins["edges"][:-1], bins["count"], np.diff(bins["edges"]), align="edge", color=PALETTE[5])
        lower.set(xlim=(0, 1), yscale="log", ylim=(0.5, None))
        lower.set_xlabel("confidence", fontsize=9)
        lower.set_ylabel("images (log scale)", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=9, frameon=False)
    return figure


def ood_bars(figures: dict[str, Any]) -> Figure:
    """Mean AUROC and FPR at 95 % TPR of near and of far strangers per score, as `ood.ood_of` gives them."""
    means = figures["means"]
    scores = list(next(iter(means.values())))
    figure, axes = figure_of(7.4, 1.2 + (0.2 + 0.27 * len(means)) * len(scores), 2)
    titles = {"auroc": "AUROC (higher is better)", "fpr_at_95_tpr": "FPR at 95 % TPR (lower is better)"}
    height = 0.8 / len(means)
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for place, (kind, colour) in enumerate(zip(means, PALETTE, strict=False)):
            at = np.arange(len(scores)) + height * (place - (len(means) - 1) / 2)
            values = [means[kind][name][key] for name in scores]
            label = f"{kind} strangers" if ax is axes[0] else None
            bars = ax.barh(at, values, 0.9 * height, color=colour, label=label)
            ax.bar_label(bars, fmt="{:.1%}", fontsize=8, padding=3)
        ax.set(xlim=(0, 1.22), xticks=[0, 0.25, 0.5, 0.75, 1])
        ax.set_yticks(range(len(scores)), [SCORE_NAMES[name] for name in scores])
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set_title(title, fontsize=10)
    axes[0].axvline(0.5, color=INK, linestyle=":", linewidth=1)  # chance
    axes[1].tick_params(labelleft=False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def bic_curve(bic: dict[str, Any], components: int) -> Figure:
    """The information criterion per number of components, as `components.bic_by_components` gives it.

    Args:
        bic: components, value, least.
        components: what the head has.
    """
    figure, (ax,) = figure_of(5.4, 3.2)
    values = np.array(bic["value"]) / 1000
    ax.plot(bic["components"], values, "-o", color=PALETTE[0])
    least = bic["components"].index(bic["least"])
    ax.plot(bic["least"], values[least], "o", color=PALETTE[1], markersize=10, label=f"least: K = {bic['least']}")
    ax.axvline(components, color=FAINT, linestyle="--", linewidth=1, label=f"this head: K = {components}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("components per class, K", fontsize=9)
    ax.set_ylabel("BIC, thousand nats (less is better)", fontsize=9)
    ax.legend(fontsize=9, frameon=False)
    return figure


def _reliability(ax: Axes, bins: dict[str, list[Any]]) -> None:
    """Accuracy per bin as bars, and the mean confidence there as points on the diagonal."""
    edges = np.array(bins["edges"])
    accuracy = np.array([np.nan if value is None else value for value in bins["accuracy"]])
    confidence = np.array([np.nan if value is None else value for value in bins["confidence"]])
    ax.bar(edges[:-1], np.nan_to_num(accuracy), np.diff(edges), align="edge", color=PALETTE[0], edgecolor="white")
    ax.plot([0, 1], [0, 1], "--", color=INK, linewidth=1)
    ax.vlines(confidence, np.minimum(accuracy, confidence), np.maximum(accuracy, confidence), color=PALETTE[1])
    ax.plot(
        confidence,
        confidence,
        "o",
        color=PALETTE[1],
        markersize=4,
        label="mean confidence in the bin; line: its gap to the accuracy",
    )
    ax.set(xlim=(0, 1), ylim=(0, 1.05))
    ax.set_ylabel("accuracy", fontsize=9)


def _name_cells(ax: Axes, counts: NDArray[np.int64], shares: NDArray[Any], classes: Sequence[str]) -> None:
    names = [shortened(name) for name in classes]
    longest = max(map(len, names))
    ax.set_xticks(range(len(names)), names, rotation=90 if longest > 3 else 0, fontsize=9)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.25 else INK
        ax.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=8, color=colour)
