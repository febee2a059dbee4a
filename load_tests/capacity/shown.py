"""What `python -m load_tests capacity` prints of one graph: every rate tried, both loops side by side, and the knee."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

TRIED = {
    "asked_per_second": "asked/s", "goodput_per_second": "right/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms",
    "failed": "failed", "overdue": "overdue", "generator_cpu": "cores", "generator_late_ms": "late ms",
    "broken": "breaks",
}  # fmt: skip
LOOPS = {
    "connections": "at once", "answers_per_second": "answers/s", "closed_p50_ms": "closed p50",
    "closed_p99_ms": "p99 ms", "open_p50_ms": "open p50", "open_p99_ms": "p99 ms", "open_goodput_per_second": "right/s",
}  # fmt: skip
AT = {
    "at": "at", "offered_per_second": "offered/s", "goodput_per_second": "right/s", "p50_ms": "p50 ms",
    "p99_ms": "p99 ms", "failed": "failed", "generator_cpu": "cores",
}  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """Print one result."""
    console, name = Console(), f"{result['bundle']} {result['precision']}"
    console.print(_table(f"{name}: every rate tried, for {result['seconds']:g} s", TRIED, result["tried"]))
    console.print("cores, late ms: of the load generator, and how late it sent the latest 1 %", highlight=False)
    console.print(_table("Closed loop, and open loop at the same rate", LOOPS, result["loops"]))
    console.print(_table("Open loop", AT, result["at"]))
    limits = [row["generator_limit"] for row in result["tried"] if row["generator_limit"]]
    if limits:
        words = (
            f"in {len(limits)} of {len(result['tried'])} runs not the server alone was slow: in the last, {limits[-1]}"
        )
        console.print(words, highlight=False)
    console.print(knee_in_words(result), highlight=False)


def knee_in_words(result: dict[str, Any]) -> str:
    """The knee, and how sure it is."""
    runs, held = result["knee_runs"]
    return (
        f"{result['bundle']} {result['precision']} holds {result['knee_per_second']:g} requests/s (p99 at most "
        f"{result['slo']['p99_ms']:g} ms, at least {result['slo']['goodput']:.0%} answered right) in {held} of {runs} "
        f"runs, and no longer {result['breaks_at_per_second']:g}"
    )


def _table(title: str, columns: dict[str, str], rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns.values():
        table.add_column(name, justify="left" if name in ("at", "breaks") else "right")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in columns))
    return table


def _cell(value: str | float | None) -> str:
    """A figure; of words the first, which names the objective that broke or where a load was."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.partition(" must ")[0]
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
