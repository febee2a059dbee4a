"""Parameters: what a client may choose about its answers, read from JSON.

    {"top_k": 3, "return": ["features"], "coverage": 0.9, "atypical_below": 0.01,
     "accept": {"probability": 0.9, "typicality": 0.05}, "priors": {"cat": 0.7, "dog": 0.3}}

Here they are held against their own rules. Whether a model can do what they ask for, `judgement.py` says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serving.errors import BadParameter, shown

RETURNABLE = ("probabilities", "components", "features", "examples", "timings")
SUM_TOLERANCE = 1e-6  # of priors

Rule = tuple[str, Callable[[float], bool]]
WITHIN: Rule = ("above 0 and below 1", lambda value: 0 < value < 1)
BELOW: Rule = ("of at least 0 and below 1", lambda value: 0 <= value < 1)
FROM_TO: Rule = ("from 0 to 1", lambda value: 0 <= value <= 1)
ABOVE: Rule = ("above 0 and at most 1", lambda value: 0 < value <= 1)


@dataclass(frozen=True)
class Accept:
    """What an answer must reach not to be called uncertain; None asks nothing of it.

    Attributes:
        probability: of its label.
        typicality: of the image.
    """

    probability: float | None = None
    typicality: float | None = None


@dataclass(frozen=True)
class Options:
    """What a client may choose about its answers.

    Attributes:
        top_k: classes in `top_k`, at least 1; more than the model has means all of them.
        returns: which of RETURNABLE to include; the timings are those of a server's batch (data_plane.py).
        coverage: the share of images whose right label is to be in `labels_at`; None leaves that out.
        atypical_below: images less typical than this are called atypical; None leaves that to the server.
        accept: what an answer must reach not to be called uncertain.
        priors: each label's share of the client's images, if they are others than of the model's.
    """

    top_k: int = 3
    returns: frozenset[str] = frozenset({"probabilities", "components"})
    coverage: float | None = None
    atypical_below: float | None = None
    accept: Accept | None = None
    priors: tuple[tuple[str, float], ...] | None = None


DEFAULT_OPTIONS = Options()


def read_options(parameters: Any) -> Options:
    """Read the parameters of a request.

    Args:
        parameters: JSON, loaded.

    Raises:
        BadParameter: if one is unknown or breaks its rule.
    """
    if not isinstance(parameters, dict):
        raise BadParameter(f"parameters must be an object, got {shown(parameters)}")
    for name in parameters:
        if name not in PARAMETERS:
            raise BadParameter(f"parameter must be one of {', '.join(PARAMETERS)}, got {shown(name)}")
    read = {name: PARAMETERS[name](value) for name, value in parameters.items()}
    if "return" in read:
        read["returns"] = read.pop("return")
    return Options(**read)


def read_coverage(value: Any) -> float:
    """Read the share of images whose right label is to be in `labels_at`.

    Raises:
        BadParameter: if it is no such share.
    """
    return _number("coverage", value, WITHIN)


def _top_k(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise BadParameter(f"top_k must be an integer of at least 1, got {shown(value)}")
    return value


def _returns(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(item in RETURNABLE for item in value):
        raise BadParameter(f"return must be a list of {', '.join(RETURNABLE)}, got {shown(value)}")
    return frozenset(value)


def _atypical_below(value: Any) -> float:
    return _number("atypical_below", value, BELOW)


def _number(name: str, value: Any, rule: Rule) -> float:
    words, holds = rule
    if type(value) not in (int, float) or not holds(value):
        raise BadParameter(f"{name} must be a number {words}, got {shown(value)}")
    return float(value)


def _accept(value: Any) -> Accept:
    names = Accept.__dataclass_fields__
    if not isinstance(value, dict) or not value or not all(name in names for name in value):
        raise BadParameter(f"accept must be an object of {' and '.join(names)}, or one of them, got {shown(value)}")
    return Accept(**{name: _number(f"accept.{name}", number, FROM_TO) for name, number in value.items()})


def _priors(value: Any) -> tuple[tuple[str, float], ...]:
    if not isinstance(value, dict):
        raise BadParameter(f"priors must be an object of each label's share, got {shown(value)}")
    priors = tuple((label, _number(f"priors of {shown(label)}", share, ABOVE)) for label, share in value.items())
    total = sum(share for _, share in priors)
    if abs(total - 1) > SUM_TOLERANCE:
        raise BadParameter(f"priors must sum to 1 within {SUM_TOLERANCE}, got {total:.7g}")
    return priors


PARAMETERS: dict[str, Callable[[Any], Any]] = {
    "top_k": _top_k,
    "return": _returns,
    "coverage": read_coverage,
    "atypical_below": _atypical_below,
    "accept": _accept,
    "priors": _priors,
}
