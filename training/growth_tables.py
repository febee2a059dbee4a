"""The tables on how cost grows: each figure beside the first of its curve, and beside how the work grew."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training.growth_plot import PLOT
from training.marked import explained, markdown, named

FAILED = 0.01  # of the requests: what is said


def growth_table(results: dict[str, Any]) -> str:
    """A row a curve, its points side by side; where it bends, in bold, and in words below."""
    records = results.get("growth", {})
    head = ("dimension", "curve", "at", "measured", "cost grew", "work grew", "cost / work", "failed, %", "on")
    rows = [
        (named("growth", name, record), curve["name"], *_cells(curve), record["machine"])
        for name, record in records.items()
        for curve in record["curves"]
    ]
    words = "\n".join(f"- {line}" for line in bends(records))
    picture = f"![Cost and work along each curve]({PLOT.relative_to('docs')})"
    return "\n\n".join(part for part in (picture, explained(markdown(head, rows), "growth", results), words) if part)


def bends(records: Mapping[str, dict[str, Any]]) -> Sequence[str]:
    """In words, the points to which the cost has grown more than the work, or where requests failed."""
    return [
        f"{name}, {curve['name']}: {point['x']:,g} {curve['x']}, {'; '.join(_in_words(curve, point))}"
        for name, record in records.items()
        for curve in record["curves"]
        for point in curve["points"]
        if point["bends_from"] is not None or point["failed"] >= FAILED
    ]


def _in_words(curve: dict[str, Any], point: dict[str, Any]) -> Iterable[str]:
    """What is wrong at a point; its cost is held against the best before it."""
    if point["bends_from"] is not None:
        before = next(one for one in curve["points"] if one["x"] == point["bends_from"])
        share, work = point["median"] / before["median"], point["work_ratio"] / before["work_ratio"]
        allowed = 1 / work if curve["is_rate"] else work
        of_before = f"{share:.2g} times the {curve['unit']} at {before['x']:,g}"
        yield f"{of_before}, where the work alone would make it {allowed:.2g}"
    if point["failed"] >= FAILED:
        yield f"{100 * point['failed']:.0f} % of the requests failed"


def point_cells(point: dict[str, Any]) -> tuple[str, ...]:
    """Place, median, how much cost and work grew, how much more the cost did, and what failed, in percent."""
    growth = (f"{point[key]:.3g}" for key in ("ratio", "work_ratio", "excess"))
    return (f"{point['x']:,g}", _figure(point["median"]), *growth, f"{100 * point['failed']:.2g}")


def _cells(curve: dict[str, Any]) -> Sequence[str]:
    at, measured, cost, work, excess, failed = zip(*map(_marked_cells, curve["points"]), strict=True)
    columns = [" · ".join(cells) for cells in (cost, work, excess, failed)]
    return (f"{' · '.join(at)} {curve['x']}", f"{' · '.join(measured)} {curve['unit']}", *columns)


def _marked_cells(point: dict[str, Any]) -> Sequence[str]:
    *others, excess, failed = point_cells(point)
    return (*others, f"**{excess}**" if point["bends_from"] is not None else excess, failed)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
