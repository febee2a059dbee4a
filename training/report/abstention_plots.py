"""Charts of abstaining: the error against the share of images that are answered; how the p-values of typicality lie.

risk_coverage(abstention_figures(evidence)).savefig("risk.png")
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from training.report.plots import FAINT, PALETTE, figure_of


def risk_coverage(figures: dict[str, Any]) -> Figure:
    """The error among the most confident images, at every coverage, as `abstention.abstention_figures` gives it.

    Beside it the best that any order of as many errors could reach: none below a coverage of the accuracy, and from
    there on all that it takes on are wrong.
    """
    figure, (ax,) = figure_of(5.4, 3.4)
    coverage, error = np.array(figures["curve"]["coverage"]), figures["error"]
    ax.plot(coverage, figures["curve"]["risk"], color=PALETTE[0], label=f"this model, AURC {figures['aurc']:.4f}")
    best = np.maximum(0, 1 - (1 - error) / coverage)
    ax.plot(coverage, best, "--", color=PALETTE[1], label=f"the best order of its errors, {figures['best_aurc']:.4f}")
    ax.axhline(error, color=FAINT, linestyle=":", linewidth=1.2, label=f"without abstaining, error {error:.2%}")
    ax.set(xlim=(0, 1), ylim=(0, None))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    ax.set_xlabel("images that are answered, the most confident first", fontsize=9)
    ax.set_ylabel("of these, wrong", fontsize=9)
    figure.legend(loc="outside lower center", fontsize=9, frameon=False)
    return figure


def typicality_histogram(figures: dict[str, Any]) -> Figure:
    """Images by their p-value, as `abstention.typicality_figures` gives them, and what would be usual."""
    figure, (ax,) = figure_of(5.4, 3.4)
    edges = np.array(figures["edges"])
    ax.bar(edges[:-1], figures["count"], np.diff(edges), align="edge", color=PALETTE[5], edgecolor="white")
    for key, label in (("low", None), ("high", "95 % of such bars end between these lines")):
        ax.stairs(figures[key], edges, color=PALETTE[1], linewidth=1.2, baseline=None, label=label)
    ax.set(xlim=(0, 1), ylim=(0, None))
    ax.set_xlabel("typicality: share of held-out images that are no more typical", fontsize=9)
    ax.set_ylabel("test images", fontsize=9)
    figure.legend(loc="outside lower center", fontsize=9, frameon=False)
    return figure
