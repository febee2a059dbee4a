"""Which classes lie close together? Class means of the training images' features and the distances between them."""

from statistics import mean
from typing import Any

from rich.table import Table

from training.analysis.diagnostics import Pair, pairs_by_distance
from training.analysis.evidence import answers_of
from training.figures import BLUE, RED, new_figure, save_figure, show_image, tidy
from training.image_files import in_memory
from training.images import Streamed
from training.studies.study import Outcome, Setting, of_runs

RECIPE = "cifar100-lda"
CLOSEST = 5
EXAMPLES = 4  # images a class


def run(setting: Setting) -> Outcome:
    """Measure one finished run on its training split.

    Raises:
        RunError: if it is missing or its images are others now.
    """
    found = setting.run(0, RECIPE)
    images = setting.images_of(found)
    train, classes = images.streamed("train"), images.dataset.classes
    spec = images.dataset.input
    seen = answers_of(found.load_classifier(), train.images, train.labels, spec, setting.device)
    pairs = pairs_by_distance(seen.features, seen.labels, len(classes))
    closest = pairs[:CLOSEST]
    mean_distance = mean(pair.distance for pair in pairs)
    figures = {
        "run": found.name,
        "images": len(train),
        "pairs": len(pairs),
        "mean_distance": round(mean_distance, 4),
        "largest_distance": round(pairs[-1].distance, 4),
        "closest": {f"{classes[p.first]} and {classes[p.second]}": round(p.distance, 4) for p in closest},
    }
    table = Table("", "closest classes", "", "distance", box=None)
    for rank, pair in enumerate(closest, start=1):
        table.add_row(str(rank), classes[pair.first], classes[pair.second], f"{pair.distance:.3f}")
    plot = save_figure(_draw(pairs, classes, found.name), setting.out / "class-means.png")
    panel = save_figure(_examples(pairs[:2], train, classes), setting.out / "class-means-example.png")
    made_from = of_runs([(found.name, found.recipe)])
    return Outcome(figures, table, made_from, (plot, panel), f"{len(pairs):,} pairs, mean distance {mean_distance:.2f}")


def _draw(pairs: list[Pair], classes: tuple[str, ...], name: str) -> Any:
    figure, axes = new_figure(10, 4, 1, 2, width_ratios=(1.25, 1))
    histogram, closest = axes[0]
    histogram.hist([pair.distance for pair in pairs], bins=min(60, max(5, len(pairs) // 4)), color=BLUE)
    tidy(histogram, title=f"{name}: {len(pairs):,} pairs of classes", x="distance of class means", y="pairs")
    rows = pairs[:CLOSEST][::-1]
    bars = closest.barh([f"{classes[p.first]} - {classes[p.second]}" for p in rows], [p.distance for p in rows])
    closest.bar_label(bars, fmt="%.2f", padding=3)
    closest.margins(x=0.15)
    for bar in bars:
        bar.set_color(RED)
    tidy(closest, title="the closest", x="distance of class means")
    closest.grid(visible=False, axis="y")
    return figure


def _examples(pairs: list[Pair], data: Streamed, classes: tuple[str, ...]) -> Any:
    """Rows of training images: both classes of the closest pair, then of the second closest."""
    rows = [label for pair in pairs for label in (pair.first, pair.second)]
    figure, axes = new_figure(1.6 * EXAMPLES, 1.85 * len(rows), len(rows), EXAMPLES)
    for row, label in zip(axes, rows, strict=True):
        positions = (data.labels == label).nonzero()[:EXAMPLES, 0]
        for panel in row:
            panel.set_axis_off()
        for panel, image in zip(row, in_memory(data.images[positions]), strict=False):
            panel.set_axis_on()
            show_image(panel, image, classes[label])
    return figure
