"""Charts and what they are drawn from: the artists of a figure are compared with the numbers, and all are drawn."""

import io
import sys
from collections.abc import Iterator
from itertools import combinations
from types import ModuleType

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle, StepPatch
from PIL import Image
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix
from training_samples import digits

from training.analysis.abstention import typicality_figures
from training.analysis.diagnostics import class_accuracy, class_distances, confused_pairs, confusion_counts, reliability
from training.heads import LinearHead, mda_head
from training.report import feature_plots, plots
from training.report.abstention_plots import risk_coverage, typicality_histogram
from training.report.feature_plots import GaussianMixtures, gaussians_of, projection_of, widths
from training.report.image_plots import GalleryRow, gallery, weight_templates

TEN = tuple(f"class {c}" for c in range(10))
HUNDRED = tuple(f"a class with quite a long name {c}" for c in range(100))
EPOCHS = [
    {"epoch": n, "loss": 1 / n, "train_accuracy": 1 - 1 / (n + 1), "lr": 0.01, "seconds": 1.0, "images_per_s": 1.0}
    for n in range(1, 6)
]


@pytest.fixture(autouse=True)
def no_global_state() -> Iterator[None]:
    """Figures leave pyplot alone."""
    yield
    pyplot: ModuleType | None = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def drawn(figure: Figure) -> np.ndarray:
    """The pixels of a figure, which is not empty."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    pixels = np.asarray(Image.open(stream).convert("RGB"))
    assert pixels.std() > 1
    return pixels


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


# What is drawn


def test_confusions_are_those_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, 200)

    counts = confusion_counts(predicted, labels, 4)

    expected = multiclass_confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(labels), 4)
    np.testing.assert_array_equal(counts, expected)
    assert class_accuracy(counts) == pytest.approx(counts.diagonal() / counts.sum(1), abs=1e-6)


def test_confused_pairs_come_in_order_and_leave_the_right_ones_out() -> None:
    counts = np.array([[90, 4, 6], [0, 50, 0], [1, 7, 12]])

    pairs = confused_pairs(counts, most=3)

    assert [(p["truth"], p["prediction"], p["count"], p["share"]) for p in pairs] == [
        (2, 1, 7, 0.35),
        (0, 2, 6, 0.06),
        (0, 1, 4, 0.04),
    ]
    assert confused_pairs(np.diag([3, 4]), most=3) == []


def test_reliability_of_four_images_by_hand() -> None:
    """Confidences 0.5 and 0.6 (right, wrong) are in [0.5, 0.75), 0.75 and 1 (right, right) in [0.75, 1]."""
    posterior = np.array([[0.5, 0.4, 0.1], [0.6, 0.2, 0.2], [0.75, 0.25, 0], [0, 1, 0]])

    bins = reliability(posterior, np.array([0, 1, 0, 1]), bins=4)

    assert bins == {
        "edges": [0, 0.25, 0.5, 0.75, 1],
        "count": [0, 0, 2, 2],
        "confidence": [None, None, 0.55, 0.875],
        "accuracy": [None, None, 0.5, 1.0],
    }


def test_reliability_has_the_bins_of_the_calibration_error() -> None:
    rng = np.random.default_rng(1)
    posterior = rng.dirichlet(np.full(5, 0.5), 500)
    labels = rng.integers(0, 5, 500)

    bins = reliability(posterior, labels)

    gaps = [n * abs(c - a) for n, c, a in zip(bins["count"], bins["confidence"], bins["accuracy"], strict=True) if n]
    expected = multiclass_calibration_error(torch.from_numpy(posterior), torch.from_numpy(labels), 5, n_bins=15)
    assert sum(gaps) / 500 == pytest.approx(expected.item(), abs=1e-5)


def test_class_distances_by_hand() -> None:
    features = np.array([[0.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 5.0]])

    distances = class_distances(features, np.array([0, 0, 1, 2]), 3)

    assert distances == {"distance": [3.0, 4.0, 5.0], "pairs": [[0, 1], [0, 2], [1, 2]]}


# Charts


def test_learning_curves_have_a_panel_for_what_was_measured() -> None:
    validated = [{**line, "validation_accuracy": 0.5, "validation_nll": 1.0} for line in EPOCHS]

    short, full = plots.learning_curves(EPOCHS), plots.learning_curves(validated)

    assert [ax.get_title() for ax in short.axes] == ["loss", "accuracy", "learning rate"]
    assert [ax.get_title() for ax in full.axes] == ["loss", "accuracy", "validation NLL, nats", "learning rate"]
    np.testing.assert_allclose(short.axes[0].lines[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert len(full.axes[1].lines) == 2
    drawn(full)


def test_confusion_matrix_names_the_cells_of_few_classes_only() -> None:
    counts = np.diag(np.full(10, 90)) + 1
    many = np.diag(np.full(100, 90)) + 1

    few_figure, many_figure = plots.confusion_matrix(counts, TEN), plots.confusion_matrix(many, HUNDRED)

    assert sorted(texts(few_figure)) == ["1"] * 90 + ["91"] * 10
    assert texts(many_figure) == []
    np.testing.assert_allclose(many_figure.axes[0].images[0].get_array(), many / 190)
    drawn(many_figure)


def test_bars_of_confusions_are_as_long_as_the_counts() -> None:
    pairs = [
        {"truth": 1, "prediction": 99, "count": 7, "share": 0.35},
        {"truth": 0, "prediction": 2, "count": 2, "share": 0.1},
    ]

    figure = plots.confused_pairs_bars(pairs, HUNDRED)

    assert [bar.get_width() for bar in figure.axes[0].patches] == [7, 2]
    assert texts(figure) == ["7  (35.0%)", "2  (10.0%)"]
    drawn(figure)


def test_of_many_classes_the_least_accurate_are_shown() -> None:
    accuracy = np.linspace(1, 0.01, 100).round(3).tolist()

    figure = plots.class_accuracy_bars(accuracy, HUNDRED)

    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), sorted(accuracy)[:20])
    drawn(figure)


@pytest.mark.parametrize(("served_at", "panels"), [(None, 2), ("T = 2.5", 4), ("T = 1 and a bias a class", 4)])
def test_calibration_is_shown_twice_if_it_changes_anything(served_at: str | None, panels: int) -> None:
    posterior = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    bins = {"nll": 0.3, "ece": 0.1, "reliability": reliability(posterior, np.array([0, 0, 0]))}

    figure = plots.calibration({"served_at": served_at, "before": bins, "after": bins})

    assert len(figure.axes) == panels
    assert all(ax.get_title().endswith("NLL 0.3000, ECE 10.00%") for ax in figure.axes[: panels // 2])
    drawn(figure)


def test_bars_of_strangers_and_curve_of_bic_show_their_numbers() -> None:
    energy, density = {"auroc": 0.9, "fpr_at_95_tpr": 0.2}, {"auroc": 0.8, "fpr_at_95_tpr": 0.4}
    ood = {
        "means": {"near": {"energy": energy, "log_density": density}, "far": {"energy": density, "log_density": energy}}
    }
    bic = {"components": [1, 2, 3], "value": [3000.0, 1000.0, 2000.0], "least": 2}

    bars, curve = plots.ood_bars(ood), plots.bic_curve(bic, 3)

    assert [bar.get_width() for ax in bars.axes for bar in ax.patches] == [0.9, 0.8, 0.8, 0.9, 0.2, 0.4, 0.4, 0.2]
    assert [text.get_text() for text in bars.legends[0].get_texts()] == ["near strangers", "far strangers"]
    np.testing.assert_allclose(curve.axes[0].lines[0].get_ydata(), [3, 1, 2])
    assert {text.get_text() for text in curve.axes[0].get_legend().get_texts()} == {"least: K = 2", "this head: K = 3"}
    drawn(bars)
    drawn(curve)


def test_curve_of_risk_ends_at_the_error_beside_the_best_that_could_be() -> None:
    """A fifth is wrong: in the best order nothing is up to a coverage of 0.8, at 0.9 a ninth."""
    figures = {
        "curve": {"coverage": [0.5, 0.8, 0.9, 1.0], "risk": [0.05, 0.1, 0.15, 0.2]},
        "error": 0.2, "aurc": 0.09, "best_aurc": 0.0215,
    }  # fmt: skip

    figure = risk_coverage(figures)

    curve, best, error = figure.axes[0].lines
    np.testing.assert_allclose(curve.get_ydata(), [0.05, 0.1, 0.15, 0.2])
    np.testing.assert_allclose(best.get_ydata(), [0, 0, 1 / 9, 0.2], atol=1e-12)
    np.testing.assert_allclose(error.get_ydata(), 0.2)
    drawn(figure)


def test_histogram_of_typicality_shows_counts_and_what_is_usual() -> None:
    figures = typicality_figures(np.arange(1, 101) / 101, 100)

    figure = typicality_histogram(figures)

    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert [bar.get_height() for bar in bars] == figures["count"]
    steps = [patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch)]
    assert [list(patch.get_data().values) for patch in steps] == [figures["low"], figures["high"]]
    drawn(figure)


# The feature plane


def test_projection_is_onto_the_directions_of_most_variance() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5000, 3)) * [1.0, 5.0, 3.0] + [1.0, 2.0, 3.0]

    projection = projection_of(features)

    np.testing.assert_allclose(np.abs(projection.axes), [[0, 1, 0], [0, 0, 1]], atol=0.05)
    np.testing.assert_allclose(projection.centre, [1, 2, 3], atol=0.2)
    assert projection.share == pytest.approx(34 / 35, abs=0.01)
    assert projection_of(features[:, :2]).share is None


def test_ellipses_are_one_and_two_standard_deviations_of_the_projected_gaussian() -> None:
    """Variances 9 and 4 along axes turned by 30 degrees, in two dimensions, so nothing is lost."""
    turn = np.array([[np.sqrt(3) / 2, -0.5], [0.5, np.sqrt(3) / 2]])
    covariance = turn @ np.diag([9.0, 4.0]) @ turn.T
    mixtures = GaussianMixtures(np.array([[[1.0, 2.0]]]), covariance[None, None], np.ones((1, 1)))

    figure = feature_plots.feature_plane(np.zeros((3, 2)), np.zeros(3, int), mixtures, ("a",), [0])

    found = [patch for patch in figure.axes[0].patches if isinstance(patch, Ellipse)]
    assert [(e.width, e.height) for e in found] == [pytest.approx((6, 4)), pytest.approx((12, 8))]
    assert all(e.angle % 180 == pytest.approx(30) and e.center == pytest.approx((1, 2)) for e in found)
    drawn(figure)


def test_mixtures_of_a_head_are_its_gaussians() -> None:
    torch.manual_seed(0)
    head = mda_head(3, 2, 2, "full")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    point = torch.randn(1, 2)

    mixtures = gaussians_of(head)

    assert mixtures is not None
    densities = torch.distributions.MultivariateNormal(
        torch.from_numpy(mixtures.means), torch.from_numpy(mixtures.covariances)
    ).log_prob(point.double())
    expected = head.gaussians(point).detach().unflatten(1, (3, 2))[0] + head.log_density_constant
    np.testing.assert_allclose(densities, expected, rtol=1e-4)
    np.testing.assert_allclose(mixtures.weights, head.weight_logits.detach().softmax(1), rtol=1e-5)
    np.testing.assert_allclose(widths(mixtures), np.linalg.det(mixtures.covariances) ** (1 / 4), rtol=1e-6)
    assert gaussians_of(LinearHead("softmax", 3, 2)) is None


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("classes", [TEN, HUNDRED])
def test_plane_scales_and_shares_are_drawn_for_any_number_of_classes(dim: int, classes: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    labels = np.arange(300) % len(classes)
    mixtures = gaussians_of(mda_head(len(classes), dim, 3))
    assert mixtures is not None
    shares = rng.dirichlet(np.ones(3), len(classes))

    drawn(feature_plots.feature_plane(rng.normal(size=(300, dim)), labels, mixtures, classes, list(range(0, 10))))
    drawn(feature_plots.component_scales(mixtures, classes))
    drawn(feature_plots.occupancy_bars({"as trained": shares, "refitted": shares}, classes))
    drawn(feature_plots.distance_histogram(rng.uniform(1, 2, 45).tolist()))


@pytest.mark.parametrize(("spread", "roomy"), [(100.0, True), (0.5, False)])
def test_names_and_weights_in_the_plane_do_not_cover_one_another(spread: float, roomy: bool) -> None:
    rng = np.random.default_rng(0)
    angles = 2 * np.pi * np.arange(20).reshape(10, 2) / 20
    means = spread * np.stack([np.cos(angles), np.sin(angles)], 2)
    mixtures = GaussianMixtures(means, np.tile(np.eye(2), (10, 2, 1, 1)), np.full((10, 2), 0.5))
    labels = np.arange(300) % 10
    features = means.mean(1)[labels] + rng.normal(size=(300, 2))

    figure = feature_plots.feature_plane(features, labels, mixtures, TEN, list(range(10)))

    texts = figure.axes[0].texts
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert len(texts) == 30 if roomy else 5 < len(texts) < 30


def test_a_dollar_in_a_class_name_is_no_formula() -> None:
    names = ("$\\frac{$", "cash $", "x" * 60)

    drawn(plots.confusion_matrix(np.eye(3, dtype=int), names))


# Pictures of images


def test_templates_are_red_where_a_pixel_speaks_for_the_class() -> None:
    templates = np.zeros((2, 3, 4, 4))
    templates[0, :, 0, 0], templates[0, :, 1, 1] = 0.2, -0.1

    figure = weight_templates(templates, ("a", "b"))

    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown[0, 0] == pytest.approx(1)
    assert shown[1, 1] == pytest.approx(-0.5)
    image = figure.axes[0].images[0]
    red, _, blue, _ = image.cmap(image.norm(1.0))
    assert red > blue
    drawn(figure)


def test_gallery_shows_its_images_in_order_and_blanks_for_missing_ones() -> None:
    first, second = digits().images[:3], digits().images[3:4]

    figure = gallery(
        [GalleryRow("one", [first, second]), GalleryRow("none", [first[:0], second])], ["left", "right"], columns=3
    )

    pixels = np.asarray(figure.axes[0].images[0].get_array())
    for position in range(3):
        left = position * 9
        np.testing.assert_array_equal(pixels[:8, left : left + 8, 0], first[position, 0])
    assert (pixels[9:17, :26] == 255).all()
    right = 3 * 9 + 4
    np.testing.assert_array_equal(pixels[9:17, right : right + 8, 1], second[0, 0])
    assert texts(figure) == ["one", "none", "left", "right"]
    drawn(figure)


def test_large_images_are_scaled_down_and_gray_and_colour_are_shown() -> None:
    large = torch.randint(0, 256, (2, 3, 100, 200), dtype=torch.uint8)

    pixels = np.asarray(gallery([GalleryRow("a", [large])], ["all"], columns=2).axes[0].images[0].get_array())

    assert pixels.shape == (32, 2 * 64 + 4, 3)


def test_gallery_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^gallery must have images, got none$"):
        gallery([GalleryRow("a", [digits().images[:0]])], ["all"], columns=2)
