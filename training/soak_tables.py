"""The table on soaks: what a server under load and faults was asked, and what came of it."""

from typing import Any

from training.marked import explained, markdown, named
from training.soak_plot import file_of


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
