"""The search space of a sweep: which keys of a recipe take which values.

parse_over("fit.lr=1e-4,1e-3,1e-2")       three values
parse_over("fit.lr=1e-5:1e-1:log")        anything between, evenly in the logarithm
parse_over("fit.lr=1e-8:0.17:log:24")     24 values, each the same factor above the one before
"""

import itertools
import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from training.backbones import backbone_of
from training.recipe import Recipe, RecipeError, load_recipe

Value = bool | int | float | str  # what a study stores; a list of numbers is held as its TOML text
Point = dict[str, Value]

OVER_EXAMPLES = "fit.lr=1e-4,1e-3 or fit.lr=1e-5:1e-1:log or fit.lr=1e-5:1e-1:log:9"


@dataclass(frozen=True)
class Parameter:
    """One key of the recipe and what it may be.

    Attributes:
        key: such as fit.lr.
        values: the values to try; empty for a range without a count.
        low: lower end of a range, inclusive.
        high: upper end of a range, inclusive.
        log: whether the range is even in the logarithm.
    """

    key: str
    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def samples(self) -> tuple[Value, ...]:
        """The listed values, or the ends of a range: what the schema is asked about."""
        return self.values or (self.low, self.high)

    def distribution(self) -> Any:
        """The parameter as Optuna knows it."""
        from optuna import distributions

        if self.values:
            return distributions.CategoricalDistribution(self.values)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return distributions.IntDistribution(self.low, self.high, log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)


def parse_over(text: str) -> Parameter:
    """Read one `--over key=...`.

    Raises:
        ValueError: if it is neither a list nor a range, or the range's ends do not fit.
    """
    key, equals, values = (part.strip() for part in text.partition("="))
    if not (equals and key and values):
        raise ValueError(f"--over must look like {OVER_EXAMPLES}, got {text!r}")
    ends = [_value(part) for part in values.split(":")]
    if len(ends) > 1 and all(_is_number(end) for end in ends[:2]):
        return _range(key, ends, text)
    listed = tuple(dict.fromkeys(_listed(values)))
    if any(value != value or value in (float("inf"), float("-inf")) for value in listed):
        raise ValueError(f"{key} must be finite everywhere, got {text!r}")
    return Parameter(key, listed)


def parse_space(texts: Sequence[str]) -> tuple[Parameter, ...]:
    """Read every `--over`.

    Raises:
        ValueError: if there is none, or a key comes twice.
    """
    space = tuple(parse_over(text) for text in texts)
    keys = [parameter.key for parameter in space]
    if not keys:
        raise ValueError(f"--over must name at least one key of the recipe, such as {OVER_EXAMPLES}, got none")
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"every key must be given once with --over, got {twice[0]} {keys.count(twice[0])} times")
    return space


def grid(space: Sequence[Parameter]) -> list[Point]:
    """Every combination of values; the last key changes fastest.

    Raises:
        ValueError: if a range has no count.
    """
    for parameter in space:
        if not parameter.values:
            end = ":log" if parameter.log else ""
            raise ValueError(
                f"{parameter.key} must be a list or a range with a count for --grid "
                f"({parameter.low:g}:{parameter.high:g}{end}:9), got a range without"
            )
    keys = [parameter.key for parameter in space]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(p.values for p in space))]


def recipe_at(name_or_file: str, settings: Sequence[str], point: Point) -> Recipe:
    """The recipe with `--set` settings and then a point of the space written into it.

    Raises:
        RecipeError: if the schema refuses it.
    """
    overrides = [*settings, *(f"{key}={json.dumps(value)}" for key, value in texts_of(point).items())]
    return load_recipe(name_or_file, overrides)[1]


def texts_of(point: Point) -> dict[str, Any]:
    """A point's values as they are in the recipe: lists are lists again."""
    return {key: tomllib.loads(f"v = {value}")["v"] if _is_list(value) else value for key, value in point.items()}


def check(name_or_file: str, settings: Sequence[str], space: Sequence[Parameter], *, every: bool) -> None:
    """Ask the recipe's schema about the space before anything runs.

    Args:
        name_or_file: the recipe.
        settings: `--set` settings.
        space: the parameters.
        every: every combination, as a grid tries them; else each value beside the first ones of the other keys.

    Raises:
        RecipeError: naming the key and the value.
    """
    for point in grid(space) if every else _beside_the_first(space):
        try:
            recipe = recipe_at(name_or_file, settings, point)
        except RecipeError as exc:
            where = ", ".join(f"{key}={value}" for key, value in point.items())
            raise RecipeError(f"{exc} (at {where})") from exc
        _suits_a_sweep(recipe)


def _suits_a_sweep(recipe: Recipe) -> None:
    if recipe.data.validation == 0:
        raise RecipeError("data.validation must be above 0 for a sweep, which chooses by the validation split, got 0")
    if backbone_of(recipe.encoder.kind) is not None:
        raise RecipeError(f"encoder.kind must be one that learns from pixels for a sweep, got {recipe.encoder.kind}")


def _beside_the_first(space: Sequence[Parameter]) -> Iterator[Point]:
    first = {parameter.key: parameter.samples()[0] for parameter in space}
    for parameter in space:
        for value in parameter.samples():
            yield {**first, parameter.key: value}


def _range(key: str, parts: list[Any], text: str) -> Parameter:
    low, high, *rest = parts
    log = bool(rest) and rest[0] == "log"
    counts = rest[1:] if log else rest
    if len(counts) > 1 or not all(type(count) is int and count >= 2 for count in counts):
        raise ValueError(f"a range must be low:high, low:high:log or either with :count of 2 or more, got {text!r}")
    if not low < high or high == float("inf"):
        raise ValueError(f"the ends of {key} must be finite and rise, got {text!r}")
    if log and low <= 0:
        raise ValueError(f"{key} must be above 0 for a range in the logarithm, got {text!r}")
    if not counts:
        return Parameter(key, (), low, high, log)
    return Parameter(key, _spaced(low, high, counts[0], log=log), low, high, log)


def _spaced(low: float, high: float, count: int, *, log: bool) -> tuple[Value, ...]:
    """`count` values with both ends, rounded to 12 digits; whole numbers if both ends are."""
    shares = [i / (count - 1) for i in range(count)]
    values = [low * (high / low) ** share if log else low + (high - low) * share for share in shares]
    if isinstance(low, int) and isinstance(high, int):
        return tuple(dict.fromkeys(round(value) for value in values))
    return tuple(float(f"{value:.12g}") for value in values)


def _listed(text: str) -> list[Value]:
    """Values between commas: `1, 2`, `sgd, adam`, `[256], [256, 128]`."""
    try:
        values = tomllib.loads(f"v = [{text}]")["v"]
    except tomllib.TOMLDecodeError:
        values = [_value(part) for part in text.split(",")]
    return [json.dumps(value) if isinstance(value, list) else value for value in values]


def _value(text: str) -> Any:
    """A TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"v = {text.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Value) -> bool:
    return isinstance(value, str) and value.startswith("[")
