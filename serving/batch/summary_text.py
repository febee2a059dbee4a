"""The summary of a job for people."""

from typing import Any

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
    if density := _density(told):
        console.print(density, markup=False)
    if told["slowest_stage"]:
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in told["stage_shares"].items())
        console.print(f"time of the workers: {shares}", markup=False)


def _density(told: dict[str, Any]) -> str:
    """How dense the images are and how typical, as far as the bundle can tell."""
    words, atypical = [], told["atypical_share"]
    if told["mean_log_density"] is not None:
        words.append(f"mean log-density {told['mean_log_density']:.2f} nats")
    if told["mean_typicality"] is not None:
        words.append(f"mean typicality {told['mean_typicality']:.2f}, of images like the held-out ones 0.5")
        words.append(f"{atypical:.1%} less typical than all but 1 % of them")
    elif atypical is not None:
        words.append(f"{atypical:.1%} less dense than all but 1 % of the bundle's test images")
    return "; ".join(words)


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
