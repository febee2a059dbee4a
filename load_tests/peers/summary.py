"""Visits → a row for each server: medians and spread, and the ratio of ours to it, round by round.

rows = summarise(visits, [1, 8, 32, 128])
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from load_tests.peers.schedule import OURS

Visit = dict[str, Any]


def summarise(visits: Sequence[Visit], connections: Sequence[int]) -> dict[str, dict[str, Any]]:
    """A row for each server, by its name.

    A ratio compares a visit with the two of ours around it in the same round, or with one, if the other failed.

    Args:
        visits: of all rounds, in order.
        connections: of wrk.
    """
    names = dict.fromkeys(visit["peer"] for visit in visits)
    return {name: _row(name, visits, connections) for name in names}


def _row(name: str, visits: Sequence[Visit], connections: Sequence[int]) -> dict[str, Any]:
    made = [visit for visit in visits if visit["peer"] == name]
    good = [visit for visit in made if "error" not in visit]
    row: dict[str, Any] = {"rounds": made}
    if errors := [visit["error"] for visit in made if "error" in visit]:
        row["errors"] = errors
    if not good:
        return row
    row["closed"] = {str(count): _closed(name, good, visits, str(count)) for count in connections}
    row["open"] = _medians([visit["open"][name] for visit in good])
    if name != OURS:
        at_its_rate = [visit["open"][name] for visit in visits if visit["peer"] == OURS and name in _open(visit)]
        row["ours_at_its_rate"] = _medians(at_its_rate) if at_its_rate else None
    return row | _medians([{key: visit[key] for key in ("memory_mb", "seconds_to_ready")} for visit in good])


def _closed(name: str, good: Sequence[Visit], visits: Sequence[Visit], count: str) -> dict[str, float]:
    rates = [visit["closed"][count]["per_second"] for visit in good]
    row = _medians([visit["closed"][count] for visit in good])
    row |= {"least_per_second": min(rates), "most_per_second": max(rates)}
    ratios = [
        statistics.mean(beside) / visit["closed"][count]["per_second"]
        for visit in good
        if (beside := [ours["closed"][count]["per_second"] for ours in _beside(visit, visits)])
    ]
    if name != OURS and ratios:
        row |= {"ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
    return row


def _beside(visit: Visit, visits: Sequence[Visit]) -> list[Visit]:
    """The visits of ours before and after another one, in the same round."""
    ours = [one for one in visits if one["peer"] == OURS and one["round"] == visit["round"] and "error" not in one]
    before = [one for one in ours if one["place"] < visit["place"]][-1:]
    return before + [one for one in ours if one["place"] > visit["place"]][:1]


def _open(visit: Visit) -> dict[str, Any]:
    found: dict[str, Any] = visit.get("open", {})
    return found


def _medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: round(_median(row[key] for row in rows), 3) for key in rows[0]}


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)
