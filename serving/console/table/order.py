"""In what order rows come, and which of them are on a page: taken in a batch at a time, little of them kept.

order = order_of(Filters(sort="-probability", page=3))
for batch in ...: order.add(batch, mask, first)
order.page()                                      numbers of rows
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.console.table.filters import Filters
from serving.errors import BadParameter

PAGE_ROWS = 60
MOST_SORTED_PAGES = 1000  # so many of the first are kept while the others are looked at

Mask = NDArray[np.bool_]


class Order(Protocol):
    """Chooses the rows of a page.

    Attributes:
        total: rows that passed so far.
    """

    total: int

    def add(self, batch: Any, mask: Mask, first: int) -> None:
        """Take in a batch.

        Args:
            batch: with the column that it is sorted by.
            mask: which of its rows pass.
            first: number of its first row.
        """

    def page(self) -> list[int]:
        """Numbers of the page's rows, in order; none if there are not so many."""


def order_of(filters: Filters) -> Order:
    """The order that is asked for.

    Raises:
        BadParameter: if the page is too far from the first to be sorted for.
    """
    if not filters.sort:
        return AsInTable(filters.page)
    if filters.page > MOST_SORTED_PAGES:
        raise BadParameter(
            f"page must be at most {MOST_SORTED_PAGES} where rows are sorted, got {filters.page}: "
            "sort the other way round, or filter more"
        )
    return Sorted(filters.page, filters.sort.removeprefix("-"), filters.sort.startswith("-"))


@dataclass
class AsInTable:
    """The order of the table."""

    number: int
    total: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, batch: Any, mask: Mask, first: int) -> None:
        """As `Order.add`."""
        passing = np.flatnonzero(mask)
        start = (self.number - 1) * PAGE_ROWS
        own = passing[max(0, start - self.total) : max(0, start + PAGE_ROWS - self.total)]
        self.rows += (own + first).tolist()
        self.total += len(passing)

    def page(self) -> list[int]:
        """As `Order.page`."""
        return self.rows


@dataclass
class Sorted:
    """By the numbers of a column; equal ones as in the table, those without a number last."""

    number: int
    column: str
    is_descending: bool
    total: int = 0
    values: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, batch: Any, mask: Mask, first: int) -> None:
        """As `Order.add`."""
        passing = np.flatnonzero(mask)
        self.total += len(passing)
        values = batch[self.column].to_numpy(zero_copy_only=False)[passing].astype(np.float64)
        values = np.where(np.isnan(values), np.inf, -values if self.is_descending else values)
        values, rows = np.concatenate([self.values, values]), np.concatenate([self.rows, passing + first])
        best = np.argsort(values, kind="stable")[: self.number * PAGE_ROWS]
        self.values, self.rows = values[best], rows[best]

    def page(self) -> list[int]:
        """As `Order.page`."""
        found: list[int] = self.rows[(self.number - 1) * PAGE_ROWS :].tolist()
        return found
