"""The rounds of one measurement as one row: medians, and beside them each round's values, which show the noise.

median_row([{"p99_ms": 9}, {"p99_ms": 12}, {"p99_ms": 10}])  # {"p99_ms": 10, "rounds": {"p99_ms": [9, 12, 10]}}
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def median_row(rows: Sequence[Row]) -> Row:
    """Rows that say the same of several rounds, as one."""
    row = {key: _together([row[key] for row in rows]) for key in rows[0]}
    measured = [key for key in rows[0] if any(_is_number(row[key]) for row in rows)]
    return {**row, "rounds": {key: [row[key] for row in rows] for key in measured}}


def _together(values: Sequence[Any]) -> Any:
    """The lower median of numbers, the sum of counts by name, and of words the first."""
    if numbers := [value for value in values if _is_number(value)]:
        return statistics.median_low(numbers)
    if isinstance(values[0], dict):
        counts = sum(map(Counter, values), Counter[str]())
        return {key: counts[key] for value in values for key in value}
    return values[0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
