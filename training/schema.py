"""Sections of a TOML file that a schema checks, and errors that name the key, the value and the choices."""

import difflib
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError


class TomlSection(BaseModel):
    """Keys and values that cannot change; unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def one_of(choices: Mapping[str, Any]) -> AfterValidator:
    """A key of a table, which says so as a Literal would."""

    def check(value: str) -> str:
        if value not in choices:
            *most, last = map(repr, choices)
            expected = f"{', '.join(most)} or {last}"
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
        return value

    return AfterValidator(check)


def problems(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong with a tree of values that should have been a `model`, a phrase a key."""
    of_keys = [list(errors) for _, errors in groupby(error.errors(), key=lambda one: _path(one, model))]
    return "; ".join(_explain(errors, model) for errors in of_keys)


def _explain(errors: list[Any], model: type[BaseModel]) -> str:
    """Pydantic's errors about one key as `<key> must be <rule>, got <value>`; a union has an error a member."""
    error, path = errors[0], _path(errors[0], model)
    key = ".".join(path) or model.__name__.lower()
    got = repr(error["input"])
    if error["type"] == "extra_forbidden":
        known = list(_fields_at(path[:-1], model))
        hint = difflib.get_close_matches(path[-1], known, n=1)
        meant = f" (did you mean {hint[0]!r}?)" if hint else ""
        return f"{key} must be one of the keys {', '.join(known)}, got an unknown key{meant} with the value {got}"
    if error["type"] == "missing":
        return f"{key} must be given, got nothing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{key} must be {' or '.join(_rule(error) for error in errors)}, got {got}"


def _rule(error: Any) -> str:
    if error["type"] == "literal_error":
        return f"one of {error['ctx']['expected']}"
    if error["type"] == "model_type":
        return "a section of keys"
    return str(error["msg"]).removeprefix("Input should be ")


def _path(error: Any, model: type[BaseModel]) -> list[str]:
    """[section, key] or [key], without the list positions and union members that pydantic adds."""
    path = [str(part) for part in error["loc"]]
    return path[:2] if path and _section(path[0], model) else path[:1]


def _section(key: str, model: type[BaseModel]) -> type[BaseModel] | None:
    """The model of the section `key`, or None if it is a value or unknown."""
    field = model.model_fields.get(key)
    candidates = [field.annotation, *get_args(field.annotation)] if field else []
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _fields_at(path: list[str], model: type[BaseModel]) -> Iterable[str]:
    section = _section(path[0], model) if path else model
    return section.model_fields if section else ()
