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
    """A table and below it what the marks of its section mean, and what its figures were measured on."""
    parts = (table, meaning_of_marks(section, results), measured_on(results.get(section, {})))
    return "\n\n".join(part for part in parts if part)


def measured_on(records: dict[str, Any]) -> str:
    """A line for each CPU, day and set of versions by which records were made; nothing of those that do not say."""
    names: dict[str, list[str]] = {}
    for name, record in records.items():
        if "cpu_model" in record:
            names.setdefault(_stamped(record), []).append(f"`{name}`")
    if len(names) == 1:
        return f"Measured on {next(iter(names))}."
    return "\n".join(f"- {', '.join(of)}: on {stamped}." for stamped, of in names.items())


def _stamped(record: dict[str, Any]) -> str:
    versions = record["versions"]
    by = f"ONNX Runtime {versions['onnxruntime']}, torch {versions['torch']}, Python {versions['python']}"
    return f"{record['machine']}, {record['cpu_model']} ({', '.join(record['cpu_flags'])}), by {by}, {record['date']}"
