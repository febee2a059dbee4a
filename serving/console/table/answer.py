"""What the page's script gets: rows, counts and progress as plain JSON values.

Texts of a table come from strangers and may be long: they are cut, and the script shows them as text.
"""

from collections.abc import Mapping
from typing import Any

from serving.console.table.filters import NO_ERROR
from serving.console.table.marks import Mark
from serving.console.table.query import Counts, Page
from serving.console.table.rows import Known
from serving.console.table.writing import Progress

MOST_CHARACTERS = 300  # of a key or message
MOST_LISTED = 50  # images that could not be written, with the reason
MOST_CHOICES = 500  # of a column, those with the most rows


def page_as_json(page: Page, label: str | None, marks: Mapping[str, Mark], known: Known) -> dict[str, Any]:
    """A page of rows.

    Args:
        page: as it was found.
        label: the class that is chosen, whose components are counted.
        marks: by key.
        known: of the table.
    """
    return {
        "total": page.total,
        "page": page.number,
        "pages": page.pages,
        "rows": [_row(row, marks) for row in page.rows],
        "counts": _counts(page.counts, label, known),
        "marked": len(marks),
    }


def progress_as_json(progress: Progress, folder: str) -> dict[str, Any]:
    """How far the writing is, and what to do next when it is done.

    Args:
        progress: of it.
        folder: that is written to, as a person may type it.
    """
    body: dict[str, Any] = {name: getattr(progress, name) for name in ("state", "done", "total", "error")}
    if progress.written is None:
        return body
    written = progress.written
    listed = [[_cut(key), _cut(why)] for key, why in list(written.not_written.items())[:MOST_LISTED]]
    return body | {
        "labels": sorted(written.labels.items()),
        "folders": sorted(written.folders.items()),
        "kept": written.kept,
        "not_written": len(written.not_written),
        "listed": listed,
        "folder": folder,
    }


def in_order(label: str) -> tuple[bool, int, str]:
    """Sorts labels: numbers in their order, before words."""
    is_number = label.isascii() and label.isdecimal() and len(label) < 10
    return (not is_number, int(label) if is_number else 0, label)


def _row(row: Mapping[str, Any], marks: Mapping[str, Mark]) -> dict[str, Any]:
    mark = marks.get(row["key"])
    return {
        **row,
        "key": _cut(row["key"]),
        "error_message": _cut(row["error_message"] or ""),
        "flags": (row["flags"] or "").split(),
        "mark": None if mark is None else mark.label,
    }


def _counts(counts: Counts, label: str | None, known: Known) -> dict[str, Any]:
    """Choices as (value, name, rows)."""
    labels = sorted(counts.labels.most_common(MOST_CHOICES), key=lambda choice: in_order(choice[0]))
    errors = [(code, count) for code, count in counts.errors.most_common(MOST_CHOICES) if code != NO_ERROR]
    return {
        "label": [[one, one, count] for one, count in labels],
        "component": [
            [one, known.names.get((label or "", one)), count] for one, count in sorted(counts.components.items())
        ],
        "error": [[code, code, count] for code, count in errors],
        "answered": counts.errors[NO_ERROR],
        "failed": sum(count for _, count in errors),
        "flag": [[one, one.replace("_", " "), count] for one, count in sorted(counts.flags.items())],
    }


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"
