"""The table of abstaining: AURC, prediction sets and typicality of every recorded model, as Markdown."""

from typing import Any

from training.marked import explained, markdown, named
from training.prediction_sets import COVERAGES


def abstention_table(results: dict[str, Any]) -> str:
    """A row for every model that the figures were recorded of; nothing if there is none."""
    sets = (f"sets at {100 * coverage:g} %" for coverage in COVERAGES)
    head = ("recipe", "AURC", "E-AURC", *sets, "worst class at 90 %", "held-out images", "less typical than 1 %")
    models = {name: row for name, row in results.get("models", {}).items() if "aurc" in row["after"]}
    rows = [(named("models", name, row), *_cells(row)) for name, row in models.items()]
    return explained(markdown(head, rows), "models", {"models": models}) if rows else ""


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    areas = tuple(f"{1000 * row['after'][key]:.1f}" for key in ("aurc", "e_aurc"))
    if "prediction_sets" not in row:
        return *areas, *("" for _ in COVERAGES), "", "", ""
    sets, typicality = row["prediction_sets"], row["typicality"]
    ninety, below = sets.get("0.9"), typicality["below"]["0.01"]
    ends = ", ".join(f"{100 * end:.2f}" for end in below["interval"])
    return (
        *areas,
        *(_set(sets.get(str(coverage))) for coverage in COVERAGES),
        "" if ninety is None else f"{100 * ninety['classes']['least']:.1f} %",
        f"{typicality['held_out']:,}",
        f"{100 * below['share']:.2f} % [{ends}]",
    )


def _set(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{100 * found['coverage']:.2f} % ({found['mean_size']:.2f})"
