"""Markdown tables whose rows say which of their records no longer are of what is there today."""

from collections.abc import Iterable, Sequence
from typing import Any

from training.stale import ResultsSection, mark_of, meaning_of_marks


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def named(section: ResultsSection, name: str, row: dict[str, Any]) -> str:
    """A record's name and its mark."""
    return f"`{name}`{mark_of(section, name, row)}"


def explained(table: str, section: ResultsSection, results: dict[str, Any]) -> str:
    """A table and below it what the marks of its section mean."""
    meaning = meaning_of_marks(section, results)
    return f"{table}\n\n{meaning}" if meaning else table
