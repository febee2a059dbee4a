r"""The records of studies, sweeps and speeds of training as Markdown: lists of figures, or a table where one is easier.

"\n\n".join(figures_lists("studies", results))
"""

from collections.abc import Iterable
from typing import Any

from training.marked import markdown
from training.photo_tables import ABOUT, rows_of_photos
from training.stale import ResultsSection, mark_of, meaning_of_marks
from training.studies import MEASURED_ON

MOST_NUMBERS = 12  # of a list that stands in a line
PHOTOGRAPHS, SETS = "photographs", "sets"  # the study that has a table, and the figures that are in it


def figures_lists(section: ResultsSection, results: dict[str, Any]) -> Iterable[str]:
    """The records of a section without a table of its own, and what their marks mean."""
    for name, figures in results.get(section, {}).items():
        yield _figures_list(section, name, figures)
    if meaning := meaning_of_marks(section, results):
        yield meaning


def _figures_list(section: ResultsSection, name: str, figures: dict[str, Any]) -> str:
    """Numbers, words and short lists of them, one a line, below the study's table if it has one."""
    has_table = section == "studies" and name == PHOTOGRAPHS
    listed = {key: value for key, value in figures.items() if not (has_table and key == SETS)}
    lines = [f"- {key}: {value}" for key, value in _leaves(listed) if not key.startswith(("versions", "digest"))]
    if section == "studies":
        lines.insert(0, f"- measured on: {MEASURED_ON[name]}")
    table = [markdown(*rows_of_photos(figures)), "", ABOUT, ""] if has_table else []
    return "\n".join([f"### {name}{mark_of(section, name, figures)}", "", *table, *lines])


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}, ")
        elif not isinstance(value, list):
            yield name, value
        elif len(value) <= MOST_NUMBERS and all(isinstance(one, int | float) for one in value):
            yield name, ", ".join(map(str, value))
