"""The tables on how many requests a second a server holds, and on what a closed loop shows of that."""

from typing import Any

from training.capacity_plot import plot_of
from training.marked import explained, markdown, named


def capacity_section(results: dict[str, Any]) -> tuple[str, ...]:
    """The section on capacity, once there is a record of it."""
    if not (records := results.get("capacity", {})):
        return ()
    bundles = dict.fromkeys(record["bundle"] for record in records.values())
    return (
        "## Capacity",
        "The highest rate at which a server on the same cores as the load generator holds p99 and at least the named "
        "share of right answers, asked by an open loop: requests come at random times whether or not the server keeps "
        "up, and latency counts from when a request was due. Generator: cores that it used at the knee.",
        knee_table(results),
        *(f"![{bundle}: latency against offered rate](plots/{plot_of(bundle).name})" for bundle in bundles),
        "The same server asked by a closed loop, wrk over so many connections, and by the open loop at the rate that "
        "wrk found. A closed loop asks again when it is answered, so a slow answer delays what comes after it, and the "
        "wait of those who would have asked meanwhile is in no figure.",
        loops_table(results),
    )


def knee_table(results: dict[str, Any]) -> str:
    """The knee of each record, and latencies there and at half of it."""
    head = ["model", "precision", "p99 at most ms", "right at least", "holds requests/s", "no longer"]
    head += ["p50 ms", "p99 ms", "at half: p50 ms", "p99 ms", "generator", "on"]
    rows = [_knee_row(record) for record in results.get("capacity", {}).values()]
    return explained(markdown(head, rows), "capacity", results)


def _knee_row(record: dict[str, Any]) -> tuple[str, ...]:
    at = {row["at"]: row for row in record["at"]}
    half, knee = at["half of the knee"], at["the knee"]
    return (
        named("capacity", record["bundle"], record),
        record["precision"],
        _figure(record["slo"]["p99_ms"]),
        f"{100 * record['slo']['goodput']:g} %",
        *(_figure(record[key]) for key in ("knee_per_second", "breaks_at_per_second")),
        *(_figure(row[key]) for row in (knee, half) for key in ("p50_ms", "p99_ms")),
        f"{knee['generator_cpu']:.2f}",
        record["machine"],
    )


def loops_table(results: dict[str, Any]) -> str:
    """Closed and open loop at the same rate."""
    head = ["model", "precision", "connections", "answers/s", "closed p50 ms", "closed p99 ms"]
    head += ["open p50 ms", "open p99 ms", "open right/s"]
    measured = ("connections", "answers_per_second", "closed_p50_ms", "closed_p99_ms", "open_p50_ms", "open_p99_ms")
    rows = [
        (
            named("capacity", record["bundle"], record),
            record["precision"],
            *(_figure(row[key]) for key in (*measured, "open_goodput_per_second")),
        )
        for record in results.get("capacity", {}).values()
        for row in record["loops"]
    ]
    return markdown(head, rows)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
