"""What has changed between two files of the same command, or between two docs/results.json, beyond noise.

    python -m load_tests compare before.json after.json
    python -m load_tests compare before.json after.json --fail-if-worse     # exit code 1 if something got worse
    git show HEAD~5:docs/results.json > before.json; python -m load_tests compare before.json docs/results.json

Figures are matched by what they are of, and are compared with the spread of their rounds (`changes.py`).
Latencies, memory, failures and errors are better if less, rates and accuracies if more.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path as File
from typing import Annotated, Any

import typer

from load_tests.compare.changes import Change, judge
from load_tests.compare.measured import Path, figures, stamps

RESULTS = "docs/results.json"
WARNED = ("machine", "cpu", "cpu_model", "cpu_flags", "versions", "digest")
MEANING = {"digest": "another recipe, bundle or parameters"}
REFUSED = 2  # exit code


class Incomparable(ValueError):
    """Files that are not of the same kind, or hold nothing in common."""


def compare(old: dict[str, Any], new: dict[str, Any], share: float = 0.1) -> list[Change]:
    """All figures that both files have.

    Args:
        old: the file before.
        new: the file after.
        share: noise of figures without rounds or interval, relative.

    Returns:
        The changes, in the order of the newer file.

    Raises:
        Incomparable: if the files are of different commands, or have no figure in common.
    """
    kinds = kind_of(old), kind_of(new)
    if kinds[0] != kinds[1]:
        raise Incomparable(f"both files must be of the same command, got {kinds[0]} and {kinds[1]}")
    before, after = figures(old), figures(new)
    changes = [judge(path, before[path], figure, share) for path, figure in after.items() if path in before]
    if not changes:
        raise Incomparable("both files must have figures of the same things, got none in common")
    return changes


def kind_of(document: dict[str, Any]) -> str:
    """The command that a file is of; of one that does not say, its keys."""
    if isinstance(document.get("command"), str):
        return str(document["command"])
    if "machine" not in document and all(isinstance(value, dict) for value in document.values()):
        return RESULTS
    kept = sorted(key for key, value in document.items() if isinstance(value, list | dict) and key != "versions")
    return f"a file with {', '.join(kept) or 'nothing'}"


def warnings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What makes the files hard to compare: another machine, other versions, another bundle."""
    before, after = stamps(old), stamps(new)
    found = {}
    for path, stamp in after.items():
        for key in WARNED:
            values = before.get(path, {}).get(key), stamp.get(key)
            if None not in values and values[0] != values[1]:
                where = f" of {' / '.join(path)}" if path else ""
                got = MEANING.get(key) or f"{_short(values[0])} before, {_short(values[1])} after"
                found[key, got] = [*found.get((key, got), []), where]
    return [
        f"{key} differs{places[0] if len(places) == 1 else f' in {len(places)} records'}: {got}"
        for (key, got), places in found.items()
    ]


def _short(value: Any) -> str:
    words = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)
    return words if len(words) <= 80 else f"{words[:80]}…"


def main(
    old: Annotated[File, typer.Argument(help="File before: of --out, or a docs/results.json.")],
    new: Annotated[File, typer.Argument(help="File after.")],
    noise: Annotated[
        float, typer.Option(min=0, help="Of figures without rounds or interval, as a share of the figure.")
    ] = 0.1,
    show_all: Annotated[bool, typer.Option("--all", help="Show what has not changed too.")] = False,
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="Exit with 1 if something got worse beyond noise.")
    ] = False,
) -> None:
    """Say what has changed between two files of measurements beyond noise."""
    before, after = _read(old), _read(new)
    try:
        changes = compare(before, after, noise)
    except Incomparable as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(REFUSED) from error
    for warning in warnings(before, after):
        typer.echo(f"warning: {warning}", err=True)
    _show([change for change in changes if show_all or change.verdict in ("better", "worse")])
    counts = Counter(change.verdict for change in changes)
    alone = (len(figures(one)) - len(changes) for one in (before, after))
    print(
        f"{len(changes)} figures: {counts['worse']} worse, {counts['better']} better, {counts['same']} within noise, "
        f"{counts['differs']} otherwise; besides {' only before, '.join(map(str, alone))} only after"
    )
    if fail_if_worse and counts["worse"]:
        raise typer.Exit(1)


def _read(file: File) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        typer.echo(f"error: {file} must be a JSON file, got {error}", err=True)
        raise typer.Exit(REFUSED) from error
    if not isinstance(document, dict):
        typer.echo(f"error: {file} must hold an object, got {type(document).__name__}", err=True)
        raise typer.Exit(REFUSED)
    return document


def _show(changes: Sequence[Change]) -> None:
    """Print changes, those of the same record together."""
    width = max((len(change.path[-1]) for change in changes), default=0)
    last: Path = ()
    for change in changes:
        if change.path[:-1] != last:
            last = change.path[:-1]
            print(" / ".join(last))
        old, new = change.old.value, change.new.value
        relative = f"{(new - old) / abs(old):+.1%}" if old else ("from 0" if new else "0")
        share = change.noise / (max(abs(old), abs(new)) or 1)
        figures = f"{old:>10.5g} → {new:<10.5g} {relative:>8} (noise {share:.1%})"
        print(f"  {change.path[-1]:{width}} {figures:45} {change.verdict}")
