"""The rows that pass the filters: a page of them, how many there are, and how many each other choice would give.

    page = ask(rows, Filters(label="7", sort="typicality"), marked={"a.png"})

One pass over the columns that are needed, a batch at a time; only a page's rows are read whole.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serving.console.table.filters import ANY_ERROR, NO_ERROR, Filters, Range
from serving.console.table.order import PAGE_ROWS, order_of
from serving.console.table.rows import Rows

FACETS = ("label", "component", "error_code", "flags")  # whose choices are counted

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Counts:
    """Rows that a choice would give, all other filters staying as they are.

    Attributes:
        labels: by label.
        components: by component, of the label that is chosen.
        errors: by code, and by `NO_ERROR`.
        flags: by flag.
    """

    labels: Counter[str] = field(default_factory=Counter)
    components: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Page:
    """Some of the rows that pass the filters.

    Attributes:
        rows: as in the table, with the number of each as `row`.
        total: how many pass.
        number: of the page, from 1; the last one if there are fewer than asked for.
        pages: how many there are; one if nothing passes.
        counts: of other choices.
    """

    rows: list[dict[str, Any]]
    total: int
    number: int
    pages: int
    counts: Counts


def ask(rows: Rows, filters: Filters, marked: Collection[str] = ()) -> Page:
    """Find a page.

    Args:
        rows: of the table.
        filters: what the rows must have, their order, and which page of them.
        marked: keys of marked images.

    Raises:
        BadParameter: if the page is too far from the first to be sorted for.
    """
    order, counts, first = order_of(filters), Counts(), 0
    columns = [*FACETS, *_more_columns(filters)]
    keys = pa.array(sorted(marked), pa.string())
    for batch in rows.scan(columns):
        base, chosen = _base(batch, filters, keys), {name: _chosen(batch, name, filters) for name in FACETS}
        _count(batch, base, chosen, counts, filters.label is not None)
        order.add(batch, _all_of([base, *chosen.values()]), first)
        first += len(batch)
    pages = max(1, -(-order.total // PAGE_ROWS))
    if filters.page > pages:
        return ask(rows, replace(filters, page=pages), marked)
    return Page(rows.take(order.page()), order.total, filters.page, pages, counts)


def _more_columns(filters: Filters) -> list[str]:
    """Columns that are needed besides those that are counted."""
    needed = {
        "typicality": not filters.typicality.is_all or filters.sort.endswith("typicality"),
        "probability": not filters.probability.is_all or filters.sort.endswith("probability"),
        "key": bool(filters.key or filters.marked),
    }
    return [name for name, is_needed in needed.items() if is_needed]


def _base(batch: Any, filters: Filters, marked: Any) -> Mask:
    """Which rows pass the filters whose choices are not counted."""
    masks = [np.ones(len(batch), np.bool_)]
    for name, limits in (("typicality", filters.typicality), ("probability", filters.probability)):
        if not limits.is_all:
            masks.append(_within(batch[name], limits))
    if filters.key:
        masks.append(_mask(pc.match_substring(batch["key"], filters.key, ignore_case=True)))
    if filters.marked:
        is_marked = _mask(pc.is_in(batch["key"], value_set=marked))
        masks.append(is_marked if filters.marked == "yes" else ~is_marked)
    return _all_of(masks)


def _within(values: Any, limits: Range) -> Mask:
    """Compared in the column's own precision, so that a bound of 0.9 includes a float32 that shows as 0.9."""
    numbers = values.to_numpy(zero_copy_only=False)
    inside: Mask = ~np.isnan(numbers)
    if limits.low is not None:
        inside &= numbers >= numbers.dtype.type(limits.low)
    if limits.high is not None:
        inside &= numbers <= numbers.dtype.type(limits.high)
    return inside


def _chosen(batch: Any, name: str, filters: Filters) -> Mask:
    """Which rows are of the choice that was made among those of a column."""
    everything = np.ones(len(batch), np.bool_)
    if name == "component" and filters.component is not None:
        return _mask(pc.equal(batch["component"], filters.component))
    if name == "label" and filters.label is not None:
        return _of_words(batch["label"], {filters.label})
    if name == "flags" and filters.flag:
        return _of_words(batch["flags"], {text for text in _words(batch["flags"]) if filters.flag in text.split()})
    if name == "error_code" and filters.error:
        failed = _mask(pc.is_valid(batch["error_code"]))
        simple = {NO_ERROR: ~failed, ANY_ERROR: failed}
        return simple[filters.error] if filters.error in simple else _of_words(batch["error_code"], {filters.error})
    return everything


def _count(batch: Any, base: Mask, chosen: dict[str, Mask], counts: Counts, has_label: bool) -> None:
    """Count a batch's choices of each column, under the filters of all others."""

    def under_all_but(*names: str) -> Mask:
        return _all_of([base, *(mask for name, mask in chosen.items() if name not in names)])

    counts.labels.update(_tally(batch["label"], under_all_but("label", "component")))
    of_errors = under_all_but("error_code")
    errors = _tally(batch["error_code"], of_errors)
    counts.errors.update(errors)
    counts.errors[NO_ERROR] += int(of_errors.sum()) - sum(errors.values())
    for text, count in _tally(batch["flags"], under_all_but("flags")).items():
        counts.flags.update(dict.fromkeys(text.split(), count))
    if has_label:
        component = batch["component"].filter(pa.array(under_all_but("component"))).drop_null()
        counts.components.update({one["values"].as_py(): one["counts"].as_py() for one in pc.value_counts(component)})


def _tally(column: Any, mask: Mask) -> dict[str, int]:
    """How many rows have each word."""
    codes = column.indices.filter(pa.array(mask)).drop_null().to_numpy(zero_copy_only=False)
    numbers = np.bincount(codes, minlength=len(column.dictionary))
    return {word: int(count) for word, count in zip(_words(column), numbers, strict=True) if count}


def _words(column: Any) -> list[str]:
    words: list[str] = column.dictionary.to_pylist()
    return words


def _of_words(column: Any, words: set[str]) -> Mask:
    """Which rows have one of these words."""
    codes = [code for code, word in enumerate(_words(column)) if word in words]
    return _mask(pc.is_in(column.indices, value_set=pa.array(codes, column.indices.type)))


def _all_of(masks: Sequence[Mask]) -> Mask:
    passing: Mask = np.logical_and.reduce(masks)
    return passing


def _mask(values: Any) -> Mask:
    found: Mask = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return found
