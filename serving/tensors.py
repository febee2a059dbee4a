"""The answers as tensors, one element or row an image: what each is called, holds and how large it is.

    label               BYTES (N)        component         INT64 (N)           log_density  FP32 (N)
    posterior           FP32  (N, C)     component_name    BYTES (N)           typicality   FP32 (N)
    possible            BOOL  (N, C)     responsibilities  FP32  (N, C, K)     features     FP32 (N, D)

`component_name` is empty where nobody has named the component; `possible` says which labels are in the prediction set,
in the order of the posterior, and is there if a request names a coverage. What a model cannot tell is left out. Every
server that speaks the Open Inference Protocol takes them from here.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.bundle import HeadShape, Manifest, OutputName
from serving.errors import BadRequest
from serving.respond import Answer

LEAST_FLOAT = -3.4028234663852886e38  # of float32, that JSON can tell

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor of answers.

    Attributes:
        datatype: of its elements.
        key: of an answer; there is such a tensor if an answer has it.
        of_answer: its part for one answer.
        needs: the output of a model's graph that it is made of.
        blank: of which its part for an image is, where there is no answer and must be a part. It is what a client that
            does not look at the error is least likely to act upon.
        sizes: of its part for one answer.
    """

    datatype: str
    key: str
    of_answer: Callable[[Answer], Any]
    needs: OutputName
    blank: str | float
    sizes: Callable[[HeadShape], Sizes] = lambda head: ()


def _classes(head: HeadShape) -> Sizes:
    return (head.classes,)


def _components(head: HeadShape) -> Sizes:
    return head.classes, head.components


def _features(head: HeadShape) -> Sizes:
    return (head.dim,)


def _component_name(answer: Answer) -> str:
    if "component" not in answer:
        raise KeyError("component")
    return str(answer.get("component_name", ""))


def _possible(answer: Answer) -> list[bool]:
    possible = set(answer["labels_at"]["set"])
    return [label in possible for label in answer["probabilities"]]


TENSORS = {
    "label": Tensor("BYTES", "label", lambda answer: answer["label"], "posterior", ""),
    "posterior": Tensor(
        "FP32", "probabilities", lambda answer: list(answer["probabilities"].values()), "posterior", 0.0, _classes
    ),
    "component": Tensor("INT64", "component", lambda answer: answer["component"], "responsibilities", -1),
    "component_name": Tensor("BYTES", "component_name", _component_name, "responsibilities", ""),
    "responsibilities": Tensor(
        "FP32", "components", lambda answer: list(answer["components"].values()), "responsibilities", 0.0, _components
    ),
    "log_density": Tensor("FP32", "log_density", lambda answer: answer["log_density"], "log_density", LEAST_FLOAT),
    "typicality": Tensor("FP32", "typicality", lambda answer: answer["typicality"], "typicality_score", 0.0),
    "possible": Tensor("BOOL", "labels_at", _possible, "typicality_score", False, _classes),
    "features": Tensor("FP32", "features", lambda answer: answer["features"], "features", 0.0, _features),
}


def tensors_of(manifest: Manifest) -> Mapping[str, Tensor]:
    """Those that a model has, by their names."""
    return {name: tensor for name, tensor in TENSORS.items() if tensor.needs in manifest.outputs}


def returned(names: Collection[str]) -> frozenset[str]:
    """What answers must hold of what a request may name, so that these tensors can be made of them."""
    keys = {TENSORS[name].key for name in names if name in TENSORS}
    wanted = keys & {"probabilities", "components", "features"}
    return frozenset(wanted | {"probabilities"} if "labels_at" in keys else wanted)


def check_possible(names: Collection[str], coverage: float | None) -> None:
    """Refuse a request that names `possible` and no coverage.

    Raises:
        BadRequest: which says so.
    """
    if "possible" in names and coverage is None:
        raise BadRequest("outputs must name possible only where parameters of the request give a coverage, got none")


def parts(name: str, answers: Sequence[Answer]) -> list[Any]:
    """The elements or rows of a tensor, one an answer.

    Raises:
        KeyError: of the name, if the answers do not tell.
    """
    try:
        return [TENSORS[name].of_answer(answer) for answer in answers]
    except KeyError:
        raise KeyError(name) from None
