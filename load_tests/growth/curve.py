"""How a cost grows: what was measured at several points, against the first of them and against how the work grows.

    curve = Curve.of(Shape("memory", "models in one server", "MB", work="models"), readings)
    curve.points[-1].excess  # 1.3: costs grew by 30 % more than the work

A curve bends where its cost has grown more than its work since a point before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

BENDS = 1.1  # so many times the growth of the work, which the rounds must agree on


@dataclass(frozen=True)
class Shape:
    """What a curve shows.

    Attributes:
        name: of the curve, in its dimension.
        x: what grows, with its unit.
        unit: of what is measured.
        work: what the work of a request, or of the server, grows with.
        is_rate: whether more is better, as of answers a second; the cost is then the time of one.
    """

    name: str
    x: str
    unit: str
    work: str
    is_rate: bool = False


@dataclass(frozen=True)
class Reading:
    """One measurement of a round.

    Attributes:
        curve: the name of its curve.
        x: where on it.
        value: in the curve's unit.
        work: in any unit, the same along the curve.
        failed: share of the requests that got no answer, or a refusal.

    Raises:
        ValueError: if value or work is not above zero: of such no ratio can be had.
    """

    curve: str
    x: float
    value: float
    work: float
    failed: float = 0.0

    def __post_init__(self) -> None:
        if not (self.value > 0 and self.work > 0):  # written so that NaN fails
            raise ValueError(
                f"{self.curve} at {self.x:,g} must be above 0, got {self.value:g} for a work of {self.work:g}, and "
                f"{100 * self.failed:.0f} % of the requests failed: raise --seconds"
            )


@dataclass(frozen=True)
class Point:
    """All rounds' readings at one place, and what they mean beside those at the first.

    Attributes:
        x: where.
        values: of each round.
        works: likewise.
        failed: share of all requests, the median of the rounds.
        ratio: the cost, over that at the first point; of medians.
        work_ratio: likewise of the work.
        bends_from: where the least cost for its work was had before, if the cost has grown more than the work since:
            beyond `BENDS` in the medians, and at all in each round.
    """

    x: float
    values: tuple[float, ...]
    works: tuple[float, ...]
    failed: float
    ratio: float
    work_ratio: float
    bends_from: float | None

    @property
    def excess(self) -> float:
        """How many times as much the cost grew as the work."""
        return self.ratio / self.work_ratio


@dataclass(frozen=True)
class Curve:
    """A curve with its points, from left to right."""

    shape: Shape
    points: tuple[Point, ...]

    @classmethod
    def of(cls, shape: Shape, readings: Iterable[Reading]) -> "Curve":
        """Make a curve of its readings, in the order of the rounds; others are left out.

        Raises:
            ValueError: if there are none.
        """
        at: dict[float, list[Reading]] = {}
        for reading in readings:
            if reading.curve == shape.name:
                at.setdefault(reading.x, []).append(reading)
        if not at:
            raise ValueError(f"{shape.name} must have readings, got none")
        costs = [_Costs.of(shape, at[x]) for x in sorted(at)]
        return cls(shape, tuple(_point(costs[: place + 1]) for place in range(len(costs))))

    def as_record(self) -> dict[str, Any]:
        """The curve as plain values."""
        return {
            "name": self.shape.name,
            "x": self.shape.x,
            "unit": self.shape.unit,
            "work": self.shape.work,
            "is_rate": self.shape.is_rate,
            "points": [_as_record(point) for point in self.points],
        }


@dataclass(frozen=True)
class _Costs:
    """What was measured at one place, a figure a round."""

    readings: Sequence[Reading]
    costs: Sequence[float]
    works: Sequence[float]

    @classmethod
    def of(cls, shape: Shape, readings: Sequence[Reading]) -> "_Costs":
        costs = [1 / one.value if shape.is_rate else one.value for one in readings]
        return cls(readings, costs, [one.work for one in readings])

    @property
    def relative(self) -> float:
        """The cost for its work."""
        return median(self.costs) / median(self.works)

    def is_worse_than(self, other: "_Costs") -> bool:
        rounds = zip(self.costs, other.costs, self.works, other.works, strict=True)
        return self.relative > BENDS * other.relative and all(
            cost * work_before > cost_before * work for cost, cost_before, work, work_before in rounds
        )


def _point(up_to: Sequence[_Costs]) -> Point:
    """The last of some points, beside those before it."""
    first, *_, last = up_to[0], *up_to
    best = min(up_to, key=lambda one: one.relative)
    return Point(
        last.readings[0].x,
        tuple(one.value for one in last.readings),
        tuple(last.works),
        median(one.failed for one in last.readings),
        median(last.costs) / median(first.costs),
        median(last.works) / median(first.works),
        best.readings[0].x if last.is_worse_than(best) else None,
    )


def _as_record(point: Point) -> dict[str, Any]:
    return {
        "x": point.x,
        "median": _short(median(point.values)),
        "rounds": [_short(value) for value in point.values],
        "work_rounds": [_short(work) for work in point.works],
        "ratio": _short(point.ratio),
        "work_ratio": _short(point.work_ratio),
        "excess": _short(point.excess),
        "bends_from": point.bends_from,
        "failed": round(point.failed, 4),
    }


def _short(value: float) -> float:
    """With four digits."""
    return float(f"{value:.4g}")
