"""Which rows a page asks for, as its address says it: `?label=7&typicality_to=0.01&sort=typicality&page=2`.

    filters = Filters.of(request.query_params)

What is left out, or empty, filters nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from serving.errors import BadParameter, shown

Sort = Literal["", "typicality", "-typicality", "probability", "-probability"]
Marked = Literal["", "yes", "no"]
SORTS: tuple[Sort, ...] = get_args(Sort)
MARKED: tuple[Marked, ...] = get_args(Marked)
NO_ERROR, ANY_ERROR = "none", "any"  # beside the codes of errors
MOST_CHARACTERS = 1000  # of a value
PARAMETERS = (
    "label", "component", "error", "flag", "marked", "key", "sort", "page",
    "typicality_from", "typicality_to", "probability_from", "probability_to",
)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """Numbers from one to another, both included; None where it has no end. Rows without a number are in none."""

    low: float | None = None
    high: float | None = None

    @property
    def is_all(self) -> bool:
        """Whether it filters nothing."""
        return self.low is None and self.high is None


@dataclass(frozen=True)
class Filters:
    """What rows must have; None or an empty text where they may have anything.

    Attributes:
        label: their class.
        component: of that class.
        error: the code of their error, `NO_ERROR` for an answer, or `ANY_ERROR`.
        flag: one of theirs.
        typicality: where theirs is.
        probability: likewise.
        marked: whether they are.
        key: a part of theirs, in capitals or not.
        sort: by what they are in order, the least first, or with "-" the greatest; if empty, as in the table.
        page: which part of them, from 1.
    """

    label: str | None = None
    component: int | None = None
    error: str = ""
    flag: str = ""
    typicality: Range = Range()
    probability: Range = Range()
    marked: Marked = ""
    key: str = ""
    sort: Sort = ""
    page: int = 1

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Filters":
        """Read an address's parameters.

        Raises:
            BadParameter: if one is unknown or breaks its rule.
        """
        for name, value in parameters.items():
            if name not in PARAMETERS:
                raise BadParameter(f"parameter must be one of {', '.join(PARAMETERS)}, got {shown(name)}")
            if len(value) > MOST_CHARACTERS:
                raise BadParameter(f"{name} must have at most {MOST_CHARACTERS} characters, got {len(value)}")
        label = parameters.get("label") or None
        component = _whole(parameters, "component", 0)
        if component is not None and label is None:
            raise BadParameter(f"component must be one of a label, got {component} without a label")
        return cls(
            label=label,
            component=component,
            error=parameters.get("error", ""),
            flag=parameters.get("flag", ""),
            typicality=_range(parameters, "typicality"),
            probability=_range(parameters, "probability"),
            marked=_one_of(parameters, "marked", MARKED),
            key=parameters.get("key", ""),
            sort=_one_of(parameters, "sort", SORTS),
            page=_whole(parameters, "page", 1) or 1,
        )


Choice = TypeVar("Choice", bound=str)


def _one_of(parameters: Mapping[str, str], name: str, choices: tuple[Choice, ...]) -> Choice:
    value = parameters.get(name, "")
    for choice in choices:
        if value == choice:
            return choice
    raise BadParameter(f"{name} must be {', '.join(filter(None, choices))} or nothing, got {shown(value)}")


def _whole(parameters: Mapping[str, str], name: str, least: int) -> int | None:
    value = parameters.get(name, "")
    if not value:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= 9 and int(value) >= least):
        raise BadParameter(f"{name} must be a whole number of at least {least}, got {shown(value)}")
    return int(value)


def _range(parameters: Mapping[str, str], name: str) -> Range:
    low, high = (_share(parameters, f"{name}_{end}") for end in ("from", "to"))
    if low is not None and high is not None and low > high:
        raise BadParameter(f"{name}_from must be at most {name}_to ({high:g}), got {low:g}")
    return Range(low, high)


def _share(parameters: Mapping[str, str], name: str) -> float | None:
    value = parameters.get(name, "")
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise BadParameter(f"{name} must be a number from 0 to 1, got {shown(value)}")
    return number
