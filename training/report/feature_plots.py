"""Charts of the feature space: the plane with the head's Gaussians, their weights and widths, the classes' distances.

feature_plane(features, labels, gaussians_of(head), classes, shown).savefig("plane.png")
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.text import Annotation
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import BboxBase
from numpy.typing import NDArray

from training.analysis.evidence import FloatArray, Labels
from training.figures import DPI, INK
from training.heads import DiscriminantHead, Head
from training.plane import Projection, projection_of
from training.report.plots import FAINT, MANY_CLASSES, PALETTE, figure_of, shortened

CLASS_MARKERS = "osD^vPX*<>"
POINTS_OF_A_CLASS = 300  # drawn
SMALL_WEIGHT = 0.005  # of a component that is not drawn


class GaussianMixtures(NamedTuple):
    """The Gaussians of a head: means (C, K, D), covariances (C, K, D, D), weights p(k|c) (C, K)."""

    means: FloatArray
    covariances: FloatArray
    weights: FloatArray


@torch.no_grad()
def gaussians_of(head: Head) -> GaussianMixtures | None:
    """The mixtures of a generative head; None for a linear one."""
    if not isinstance(head, DiscriminantHead):
        return None
    shape = (head.classes, head.components)
    lower = head.gaussians.cholesky().double()
    covariances = (lower @ lower.mT).expand(head.classes * head.components, -1, -1).unflatten(0, shape)
    means = head.gaussians.means.double().unflatten(0, shape)
    return GaussianMixtures(means.numpy(), covariances.numpy(), head.weight_logits.double().softmax(1).numpy())


def widths(mixtures: GaussianMixtures) -> FloatArray:
    """Standard deviation of each component, the geometric mean over directions: det(Sigma)^(1/2D), (C, K)."""
    _, log_det = np.linalg.slogdet(mixtures.covariances)
    result: FloatArray = np.exp(0.5 * log_det / mixtures.means.shape[2])
    return result


def feature_plane(
    features: FloatArray,
    labels: Labels,
    mixtures: GaussianMixtures | None,
    classes: Sequence[str],
    shown: Sequence[int],
    seed: int = 0,
) -> Figure:
    """Features with the components' means, their ellipses of one and two standard deviations, and their weights.

    Names and weights that would cover one another are left out.

    Args:
        features: (N, D); more than two dimensions are projected, and the Gaussians with them.
        labels: (N,).
        mixtures: the head's, or None if it has none.
        classes: C names.
        shown: positions of the classes in colour, ten at most; the others are gray.
        seed: of the choice of at most 300 points a class.
    """
    figure, (ax,) = figure_of(7.6, 6.4)
    projection = projection_of(features)
    generator = np.random.default_rng(seed)
    for label in [c for c in range(len(classes)) if c not in shown] + list(shown):
        members = np.flatnonzero(labels == label)
        members = generator.permutation(members)[: POINTS_OF_A_CLASS if label in shown else 20]
        points = (features[members] - projection.centre) @ projection.axes.T
        if features.shape[1] == 1:
            points[:, 1] = generator.uniform(-1, 1, len(points))
        colour, marker = _look(shown.index(label)) if label in shown else (FAINT, ".")
        alpha = 0.45 if label in shown else 0.2
        ax.scatter(points[:, 0], points[:, 1], s=12, alpha=alpha, color=colour, marker=marker, linewidths=0)
    names, weights = [], []
    for place, label in enumerate(shown):
        colour, marker = _look(place)
        ax.scatter([], [], s=30, color=colour, marker=marker, label=shortened(classes[label]))
        if mixtures is not None:
            weights += _draw_mixture(ax, mixtures, label, projection, colour)
        middle = (features[labels == label].mean(0) - projection.centre) @ projection.axes.T
        names.append(_write(ax, shortened(classes[label], 12), middle, size=10))
    _name_axes(ax, projection, features.shape[1])
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    _keep_apart(figure, [*names, *weights])
    return figure


def component_scales(mixtures: GaussianMixtures, classes: Sequence[str]) -> Figure:
    """Weight and standard deviation of every component: dots a class, or maps for more than 20 classes."""
    panels = [("weight p(component | class)", mixtures.weights), ("standard deviation", widths(mixtures))]
    if len(classes) > MANY_CLASSES:
        return _maps(panels, "component, by weight", order=np.argsort(-mixtures.weights, axis=1))
    figure, axes = figure_of(7.4, 1.3 + 0.3 * len(classes), 2)
    for ax, (title, values) in zip(axes, panels, strict=True):
        for k in range(values.shape[1]):
            colour, marker = _look(k)
            label = f"component {k}" if ax is axes[0] else None
            ax.plot(values[:, k], range(len(classes)), marker, color=colour, markersize=7, alpha=0.85, label=label)
        ax.set_title(title, fontsize=10)
        ax.set_yticks(range(len(classes)), [shortened(name) for name in classes], fontsize=9)
        ax.invert_yaxis()
        ax.set_xlim(left=0)
    axes[0].set_xlim(-0.03, 1.05)
    axes[0].xaxis.set_major_formatter(PercentFormatter(1))
    axes[1].tick_params(labelleft=False)
    figure.legend(loc="outside lower center", ncols=min(mixtures.weights.shape[1], 5), fontsize=9, frameon=False)
    return figure


def occupancy_bars(variants: dict[str, NDArray[Any]], classes: Sequence[str]) -> Figure:
    """Share of each class's images per component, one panel a variant; maps for more than 20 classes.

    Args:
        variants: occupancies (C, K) by title.
        classes: C names.
    """
    if len(classes) > MANY_CLASSES:
        panels = [(title, -np.sort(-np.asarray(shares), axis=1)) for title, shares in variants.items()]
        return _maps(panels, "component, by share", top=1)
    figure, axes = figure_of(1.2 + 3.6 * len(variants), 1.3 + 0.3 * len(classes), len(variants))
    for ax, (title, shares) in zip(axes, variants.items(), strict=True):
        shares = np.asarray(shares)
        starts = np.cumsum(shares, axis=1) - shares
        for k in range(shares.shape[1]):
            label = f"component {k}" if ax is axes[0] else None
            colour = PALETTE[k % len(PALETTE)]
            ax.barh(range(len(classes)), shares[:, k], 0.75, starts[:, k], color=colour, edgecolor="white", label=label)
        ax.set_title(title, fontsize=10)
        ax.set_yticks(range(len(classes)), [shortened(name) for name in classes], fontsize=9)
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.tick_params(labelleft=ax is axes[0])
    figure.legend(loc="outside lower center", ncols=min(len(shares[0]), 5), fontsize=9, frameon=False)
    return figure


def distance_histogram(distance: Sequence[float]) -> Figure:
    """Distances between the classes' mean features, all pairs."""
    figure, (ax,) = figure_of(5.4, 3.2)
    ax.hist(distance, bins=min(30, max(5, len(distance) // 3)), color=PALETTE[0], edgecolor="white")
    middle = float(np.median(distance))
    ax.axvline(middle, color=PALETTE[1], linestyle="--", linewidth=1.2, label=f"median {middle:.3g}")
    ax.set_xlabel("distance between the mean features of two classes", fontsize=9)
    ax.set_ylabel("pairs of classes", fontsize=9)
    ax.legend(fontsize=9, frameon=False)
    return figure


def _look(place: int) -> tuple[str, str]:
    """Colour and marker, so that neither has to be told apart alone."""
    return PALETTE[place % len(PALETTE)], CLASS_MARKERS[place % len(CLASS_MARKERS)]


def _draw_mixture(
    ax: Axes, mixtures: GaussianMixtures, label: int, projection: Projection, colour: str
) -> list[Annotation]:
    """Draw a class's Gaussians; the texts are their weights, of more than one."""
    texts = []
    for mean, covariance, weight in zip(*(part[label] for part in mixtures), strict=True):
        if weight < SMALL_WEIGHT:
            continue
        centre = projection.axes @ (mean - projection.centre)
        values, vectors = np.linalg.eigh(projection.axes @ covariance @ projection.axes.T)
        angle = float(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])))
        for sigmas, dashes in ((1, "-"), (2, ":")):
            minor, major = 2 * sigmas * np.sqrt(values.clip(min=0))
            style: dict[str, Any] = {"fill": False, "color": colour, "linewidth": 1.3, "linestyle": dashes}
            ax.add_patch(Ellipse(tuple(centre), major, minor, angle=angle, **style))
        ax.plot(*centre, "X", color=colour, markersize=9, markeredgecolor="white")
        if len(mixtures.weights[label]) > 1:
            texts.append(_write(ax, f"{weight:.2f}", centre, size=8))
    return texts


def _write(ax: Axes, text: str, place: FloatArray, size: int) -> Annotation:
    """Text for a place, readable on points."""
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    style: dict[str, Any] = {"fontsize": size, "color": INK, "path_effects": halo, "zorder": 5, "ha": "center"}
    return ax.annotate(text, tuple(place), (0, 0), textcoords="offset points", **style)


def _keep_apart(figure: Figure, texts: Sequence[Annotation]) -> None:
    """Put each text where it covers none before it: above its place, below, right or left; else remove it."""
    figure.draw_without_rendering()  # only now the layout is known
    placed: list[BboxBase] = []
    for text in texts:
        half = text.get_window_extent().width / 2 * 72 / figure.dpi  # pixels to points
        for offset in ((0, 9), (0, -17), (half + 9, -3), (-half - 9, -3)):
            text.xyann = offset
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in placed):
                placed.append(box)
                break
        else:
            text.remove()


def _name_axes(ax: Axes, projection: Projection, dim: int) -> None:
    first, second = ("feature 1", "feature 2") if dim == 2 else ("feature", "(scattered, without meaning)")
    if projection.share is not None:
        first = f"principal component 1 of {dim} features"
        second = f"principal component 2 (both hold {projection.share:.0%} of the variance)"
    ax.set_xlabel(first, fontsize=9)
    ax.set_ylabel(second, fontsize=9)


def _maps(
    panels: Sequence[tuple[str, FloatArray]],
    across: str,
    order: NDArray[np.int64] | None = None,
    top: float | None = None,
) -> Figure:
    """Heat maps (C, K), one a panel; the columns of each row in `order`."""
    figure = Figure(figsize=(0.8 + 3.3 * len(panels), 6.0), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(1, len(panels), squeeze=False).flat)
    for ax, (title, values) in zip(axes, panels, strict=True):
        shown = values if order is None else np.take_along_axis(values, order, axis=1)
        image = ax.imshow(shown, aspect="auto", cmap="cividis", vmin=0, vmax=top, interpolation="nearest")
        figure.colorbar(image, ax=ax, shrink=0.7).ax.tick_params(labelsize=8)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(across, fontsize=9)
        ax.set_xticks(range(shown.shape[1]), map(str, range(shown.shape[1])))
        ax.tick_params(labelsize=8)
    axes[0].set_ylabel("class", fontsize=9)
    return figure
