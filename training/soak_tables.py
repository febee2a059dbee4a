"""The table on soaks: what a server under load and faults was asked, and what came of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.marked import explained, markdown, named

PLOTS = Path("docs/plots")


def soak_section(results: dict[str, Any]) -> Sequence[str]:
    """The section on soaks, once there is a record of one."""
    if not results.get("soak"):
        return ()
    return (
        "## Soak and faults",
        "A server at four fifths of what it holds, while faults happen to it: it is stopped and started, a worker is "
        "killed, a version is deployed and rolled back, bad ones are refused, corrupt images come in a burst, and "
        "clients hang. Refused: 503, or no connection while it is stopped. Lost: in the hands of the worker that was "
        "killed. Growth is the median slope between pairs of looks (Theil and Sen), over the time without the warm-up.",
        soak_table(results),
        soak_lines(results),
    )


def soak_table(results: dict[str, Any]) -> str:
    """A row a soak."""
    head = ["model", "precision", "minutes", "requests/s", "requests", "right", "refused", "lost", "wrong"]
    head += ["ready again, s", "promises kept", "over time", "on"]
    rows = [
        (
            named("soak", record["bundle"], record),
            record["precision"],
            f"{record['seconds'] / 60:.0f}",
            f"{record['per_second']:g}",
            f"{record['requests']:,}",
            *(f"{record['outcomes'].get(outcome, 0):,}" for outcome in ("right", "refused", "lost", "wrong")),
            ", ".join(f"{seconds:.1f} ({fault})" for fault, seconds in record["ready_s"].items()),
            f"{sum(line['is_kept'] for line in record['lines'])} of {len(record['lines'])}",
            f"[plot](plots/{file_of(name)})",
            record["machine"],
        )
        for name, record in results.get("soak", {}).items()
    ]
    return explained(markdown(head, rows), "soak", results)


def soak_lines(results: dict[str, Any]) -> str:
    """Each promise of each soak, and what came of it."""
    parts = []
    for name, record in results.get("soak", {}).items():
        lines = [
            f"- {'' if line['is_kept'] else '**broken** '}{line['asked']}: {line['got']}" for line in record["lines"]
        ]
        parts.append("\n".join([f"What was asked of `{name}`, and what came of it:", "", *lines]))
    return "\n\n".join(parts)


def file_of(name: str) -> str:
    """The name of the plot of a record."""
    return f"soak-{name.replace(':', '-').replace(' ', '-')}.svg"
