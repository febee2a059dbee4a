"""The tables on the servers that one could take instead of ours: how fast each is, and how each was tuned."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from training.marked import explained, markdown
from training.peers_plot import FOLDER, file_of
from training.stale import mark_of

ABOUT = (
    "The same ONNX graph, preprocessing and answers in other servers, each in an environment of its own, one at a time "
    "on the same cores as wrk. Answers/s: median of the rounds (least to most). Ratio: ours, as measured before and "
    "after it in the same round, over this server; above 1 ours is ahead. p99 open: by an open loop at half of this "
    "server's best rate; in brackets that of ours at the same rate. Memory: PSS of all processes. Ready: from the "
    "start to the first answer."
)


def peers_text(results: dict[str, Any]) -> Sequence[str]:
    """The section on peers, once there is a record of it."""
    records = results.get("peers", {})
    if not records:
        return ()
    parts = [part for name, record in records.items() for part in _of_record(name, record)]
    servers = {name: row for record in records.values() for name, row in record["rows"].items()}
    return ("## Peers", ABOUT, *parts, explained(tuning_list(servers.values()), "peers", results))


def peers_table(record: dict[str, Any]) -> str:
    """A row for each server and number of connections."""
    head = ("server", "at once", "answers/s", "ratio", "p50 ms", "p99 ms", "p99 open ms", "memory MB", "ready s")
    rows = [line for row in record["rows"].values() for line in _lines(row, record["connections"])]
    return markdown(head, rows)


def tuning_list(rows: Iterable[dict[str, Any]]) -> str:
    """How each server was set up, and by which page of its documentation."""
    return "\n".join(
        f"- {row['title']}{_packages(row)}: {row['tuning']} ([documentation]({_link(row['source'])}))." for row in rows
    )


def _of_record(name: str, record: dict[str, Any]) -> Iterator[str]:
    mark = mark_of("peers", name, record)
    yield f"`{record['bundle']}`{mark} in {record['precision']}, {record['rounds']} rounds:"
    yield peers_table(record)
    yield f"![answers a second and p99 by server](plots/{file_of(record, FOLDER).name})"


def _lines(row: dict[str, Any], connections: Sequence[int]) -> Iterator[tuple[str, ...]]:
    if "closed" not in row:
        reason = row["errors"][0].splitlines()[0]
        yield (row["title"], "", f"not measured: {reason}".replace("|", "\\|"), *[""] * 6)
        return
    for n, count in enumerate(connections):
        at = row["closed"][str(count)]
        rate = f"{at['per_second']:,.0f} ({at['least_per_second']:,.0f} to {at['most_per_second']:,.0f})"
        failed = f", {at['failed']:g} failed" if at["failed"] else ""
        ratio = f"{at['ratio']:.2f}" if "ratio" in at else ""
        figures = (str(count), rate + failed, ratio, f"{at['p50_ms']:.3g}", f"{at['p99_ms']:.3g}")
        once = (_open(row), f"{row['memory_mb']:g}", f"{row['seconds_to_ready']:.1f}") if n == 0 else ("", "", "")
        yield (row["title"] if n == 0 else "", *figures, *once)


def _open(row: dict[str, Any]) -> str:
    ours = row.get("ours_at_its_rate")
    beside = f" [{ours['p99_ms']:.3g}]" if ours else ""
    return f"{row['open']['p99_ms']:.3g}{beside} at {row['open']['offered']:,.0f}/s"


def _packages(row: dict[str, Any]) -> str:
    return f" ({', '.join(row['packages'])})" if row.get("packages") else ""


def _link(source: str) -> str:
    """A page of this project is linked from docs/results.md, beside it."""
    return source.removeprefix("docs/")
