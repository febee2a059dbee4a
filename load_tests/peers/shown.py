"""What the benchmark of peers prints."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_rows(result: dict[str, Any]) -> None:
    """A table of one precision, and what went wrong."""
    table = Table(title=f"{result['bundle']} in {result['precision']}, {result['rounds']} rounds")
    for name in ("server", "at once", "answers/s", "least", "most", "ours ÷ it", "p50 ms", "p99 ms", "failed"):
        table.add_column(name, justify="left" if name == "server" else "right")
    for name, row in result["rows"].items():
        for count, at in row.get("closed", {}).items():
            rates = (at[key] for key in ("per_second", "least_per_second", "most_per_second"))
            ratio = f"{at['ratio']:.2f}" if "ratio" in at else ""
            rest = (at[key] for key in ("p50_ms", "p99_ms", "failed"))
            table.add_row(name, count, *(f"{rate:g}" for rate in rates), ratio, *(f"{figure:g}" for figure in rest))
        table.add_section()
    console = Console()
    console.print(table, _open_table(result), sep="\n")
    for name, row in result["rows"].items():
        for error in row.get("errors", ()):
            console.print(f"{name}: {error}", markup=False, highlight=False)


def _open_table(result: dict[str, Any]) -> Table:
    table = Table(title="open loop at half of a server's best rate by wrk, which stands for its knee")
    for name in ("server", "requests/s", "p50 ms", "p99 ms", "failed", "ours: p99 ms", "memory MB", "ready s"):
        table.add_column(name, justify="left" if name == "server" else "right")
    for name, row in result["rows"].items():
        if "open" in row:
            at, ours = row["open"], row.get("ours_at_its_rate")
            figures = (at[key] for key in ("offered", "p50_ms", "p99_ms", "failed"))
            beside = f"{ours['p99_ms']:g}" if ours else ""
            rest = (f"{row['memory_mb']:g}", f"{row['seconds_to_ready']:g}")
            table.add_row(name, *(f"{figure:g}" for figure in figures), beside, *rest)
    return table
