"""What commands print of a model: its metrics, what its components are used for, what its variants cost."""

import json
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from serving.bundle import Variant
from training.component_names import ComponentNames
from training.progress import console, say


def show_costs(precision: str, variant: Variant, exact: float) -> None:
    """Print what a variant costs: on the test split, and in log-density where it was judged."""
    line = f"{precision}: accuracy {variant.accuracy:.2%} (float32 {exact:.2%})"
    line += f", {variant.agreement:.2%} of the assignments as in float32"
    if (judged := variant.judged) and (shift := judged.density_shift):
        line += f"; log-density {shift['0.5']:+.2f} nats in the median, {shift['0.01']:+.2f} to {shift['0.99']:+.2f}"
    say(line + (f"; judged on {judged.images:,} {judged.split} images" if judged else ""))


def show_metrics(
    metrics: dict[str, Any], classes: Sequence[str], as_json: bool, names: ComponentNames | None = None
) -> None:
    """Print the metrics of a split (see `evaluate.measure`), and what the components are used for; or all as JSON."""
    if as_json:
        print(json.dumps(metrics))
        return
    table = Table(
        "split", "images", "accuracy", "NLL", "Brier", "ECE", "ECE, equal mass", "AURC", "mean log-density", box=None
    )
    density = metrics.get("log_density")
    table.add_row(
        metrics["split"], f"{metrics['images']:,}", f"{metrics['accuracy']:.2%}", f"{metrics['nll']:.4f}",
        f"{metrics['brier']:.4f}", f"{metrics['ece']:.2%}", f"{metrics['ece_equal_mass']:.2%}",
        f"{metrics['aurc']:.4f}", "" if density is None else f"{density:.2f}",
    )  # fmt: skip
    console.print(table)
    if occupancy := metrics.get("occupancy"):
        shares = components_table(classes, len(occupancy[0]), occupancy, names or {})
        console.print("\nshare of each class's images per component:", shares, sep="\n")


def components_table(
    labels: Sequence[str], components: int, occupancy: Sequence[Sequence[float]] | None, names: ComponentNames
) -> Table:
    """A row a class, a column a component: the share of the class's images that it takes, if known, and its name."""
    table = Table("class", *[f"component {k}" for k in range(components)], box=None)
    for position, label in enumerate(labels):
        called = [escape(names.get(label, {}).get(k, "")) for k in range(components)]
        shares = [""] * components if occupancy is None else [f"{share:.1%}" for share in occupancy[position]]
        cells = (f"{share} {name}".strip() for share, name in zip(shares, called, strict=True))
        table.add_row(escape(label), *cells)
    return table
