"""The figures in a JSON file of measurements, each under a name that the next file of the same kind has too.

    figures({"results": [{"bundle": "mnist-mda:1", "rows": [{"connections": 8, "p99_ms": 9, "rounds": {...}}]}]})
    # {("results", "mnist-mda:1", "rows", "connections 8", "p99_ms"): Figure(9, rounds=(...))}

A row of a list is known by what was measured, not by its place. What a file keeps of rounds, beside the medians or
around them, becomes the figure's own: `{"p99_ms": [8, 9, 12]}`, `[{"p99_ms": 8}, ...]`, or of a `median` `[8, 9, 12]`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What tells the rows of a list apart, and where a word suffices without its name.
IDENTIFYING = ("bundle", "precision", "image", "images", "device", "name", "by", "form", "at", "kind", "peer", "server")
NUMBERED = ("connections", "models", "classes", "pixels", "cores", "x", "seed", "place")
STAMP = ("machine", "cpu", "cpu_model", "cpu_flags", "versions", "commit", "date", "digest")
# Not compared: rounds are part of figures; the others are of one run's course.
SKIPPED = (*STAMP, "rounds", "of_rounds", "intervals", "tried", "windows", "over_time", "slo")
SKIPPED_ENDS = ("problems", "histogram_ms")

Path = tuple[str, ...]
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A number that was measured.

    Attributes:
        value: the median of the rounds, or all there is.
        rounds: each round's value, none if they were not kept.
        interval: that the file itself says the value to be in.
        more_is_better: as the file says; None if it does not.
    """

    value: float
    rounds: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None
    more_is_better: bool | None = None


def figures(document: Document) -> dict[Path, Figure]:
    """All figures of a file."""
    return dict(_walk(document, (), (), None))


def stamps(document: Document) -> dict[Path, dict[str, Any]]:
    """Where and of what the figures are, wherever a file says so."""
    return dict(_stamps(document, ()))


def _walk(node: Any, path: Path, rounds: Sequence[Any], is_rate: bool | None) -> Iterator[tuple[Path, Figure]]:
    if isinstance(node, Mapping):
        is_rate, rounds = node.get("is_rate", is_rate), _rounds(node) or rounds
        for key, value in node.items():
            if _is_skipped(key) or (key in NUMBERED and is_number(value)):
                continue
            below = [one[key] for one in rounds if isinstance(one, Mapping) and key in one]
            if is_number(value):
                yield (*path, key), _figure(value, below, node, key, is_rate)
            else:
                yield from _walk(value, (*path, key), below, is_rate)
    elif isinstance(node, list):
        for name, row in _named(node):
            yield from _walk(row, (*path, name), (), is_rate)


def _figure(value: float, below: Sequence[Any], node: Document, key: str, is_rate: bool | None) -> Figure:
    ends = node.get("intervals", {}).get(key) if isinstance(node.get("intervals"), Mapping) else None
    interval = (ends[0], ends[1]) if isinstance(ends, list) and len(ends) == 2 else None
    known = is_rate if key == "median" else None
    return Figure(value, tuple(one for one in below if is_number(one)), interval, known)


def _rounds(node: Document) -> list[Any]:
    """What is kept of rounds, as one node a round of the same form."""
    kept = node.get("rounds") if isinstance(node.get("rounds"), list | dict) else node.get("of_rounds")
    if isinstance(kept, Mapping):
        lists = {key: values for key, values in kept.items() if isinstance(values, list)}
        longest = max(map(len, lists.values()), default=0)
        return [{key: values[at] for key, values in lists.items() if at < len(values)} for at in range(longest)]
    if not isinstance(kept, list):
        return []
    return [{"median": one} if is_number(one) else one for one in kept]


def _named(rows: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Rows by what they are of; those that cannot be told apart also by their place among their like."""
    seen: dict[str, int] = {}
    for row in rows:
        if isinstance(row, Mapping):
            name = _identity(row)
            seen[name] = seen.get(name, 0) + 1
            yield name if seen[name] == 1 else f"{name} ({seen[name]})", row


def _identity(row: Document) -> str:
    words = [row[key] for key in IDENTIFYING if isinstance(row.get(key), str)]
    numbers = [f"{key} {row[key]:g}" for key in (*NUMBERED, "images") if is_number(row.get(key))]
    return ", ".join([*words, *numbers]) or "row"


def _stamps(node: Any, path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    if isinstance(node, Mapping):
        if found := {key: node[key] for key in STAMP if key in node}:
            yield path, found
        for key, value in node.items():
            if not _is_skipped(key):
                yield from _stamps(value, (*path, key))
    elif isinstance(node, list):
        for name, row in _named(node):
            yield from _stamps(row, (*path, name))


def _is_skipped(key: str) -> bool:
    return key in SKIPPED or key.endswith(SKIPPED_ENDS)


def is_number(value: object) -> bool:
    """Whether it can be a figure: a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
