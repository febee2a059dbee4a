"""The summary of a job for people."""

from rich.console import Console
from rich.table import Table

from serving.batch.score import Summary

MOST_CLASSES = 20  # the commonest; the table has them all


def print_summary(summary: Summary, *, quiet: bool) -> None:
    """One line of what was scored, and unless it is to be quiet what is in the table."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(str(summary), markup=False)
    if quiet:
        return
    told = summary.as_json()
    for code, count in told["error_codes"].items():
        console.print(f"  {code}: {count:,}", markup=False)
    if told["classes"]:
        console.print(_classes(told))
    if told["mean_log_density"] is not None:
        console.print(f"mean log-density {told['mean_log_density']:.2f} nats", end="")
        atypical = told["atypical_share"]
        if atypical is not None:
            console.print(f"; {atypical:.1%} less dense than all but 1 % of the bundle's test images", end="")
        console.print()
    if told["slowest_stage"]:
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in told["stage_shares"].items())
        console.print(f"time of the workers: {shares}", markup=False)


def _classes(told: dict[str, dict[str, list[int]]]) -> Table:
    table = Table("class", box=None)
    table.add_column("images", justify="right")
    table.add_column("of each component", justify="right")
    by_count = sorted(told["components"].items(), key=lambda item: -sum(item[1]))
    for label, counts in by_count[:MOST_CLASSES]:
        each = " ".join(f"{count:,}" for count in counts) if len(counts) > 1 else ""
        table.add_row(label, f"{sum(counts):,}", each)
    if len(by_count) > MOST_CLASSES:
        table.add_row(f"{len(by_count) - MOST_CLASSES} more", "", "")
    return table
