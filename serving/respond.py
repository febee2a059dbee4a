"""Answering: the graph's outputs → the answer schema.

    {"label": "7", "probability": 0.981, "component": 1, "component_probability": 0.93,
     "top_k": [{"label": "7", "probability": 0.981, "component": 1, "component_probability": 0.93}, ...],
     "probabilities": {"0": ..., "9": ...}, "components": {"7": [0.07, 0.93], ...},
     "log_density": -1.93, "model": {"name": "mnist-mda", "version": "1"}}

Softmax and SVM models have no components and no log-density, so their answers leave those keys out. Numbers are plain
floats with 7 significant digits: all that float32 holds, and short as JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Manifest
from serving.errors import ServingError

DIGITS = 7
FEW = 200  # numbers that are rounded faster one by one
EXACT_POWER = 22  # the greatest power of ten that is a float64
RETURNABLE = ("probabilities", "components", "features")

Answer = dict[str, Any]
Result = Answer | ServingError
Arrays = Mapping[str, NDArray[Any]]
StatusAndBody = tuple[int, Answer]


@dataclass(frozen=True)
class Options:
    """What a client may choose about its answers.

    Attributes:
        top_k: classes in `top_k`, at least 1; more than the model has means all of them.
        returns: which of RETURNABLE to include.
    """

    top_k: int = 3
    returns: frozenset[str] = frozenset({"probabilities", "components"})


DEFAULT_OPTIONS = Options()


def encode(outputs: Arrays, manifest: Manifest, options: Sequence[Options]) -> list[Answer]:
    """Turn the outputs for N images into N answers.

    Args:
        outputs: arrays by the names of `manifest.outputs`, each (N, ...).
        manifest: of the bundle that computed them.
        options: the client's choices for each image.
    """
    wanted = [name for name in outputs if name != "features" or any("features" in one.returns for one in options)]
    rounded = _significant_lists({name: outputs[name] for name in wanted})
    ranked = np.argsort(-outputs["posterior"], axis=1, kind="stable")[:, : max(one.top_k for one in options)].tolist()
    posterior = rounded["posterior"]
    responsibilities = rounded.get("responsibilities")
    log_density = rounded.get("log_density")
    model = {"name": manifest.name, "version": str(manifest.version)}

    answers = []
    for n, one in enumerate(options):
        weights = responsibilities[n] if responsibilities is not None else None
        top = [_candidate(manifest.labels, posterior[n], weights, c) for c in ranked[n][: one.top_k]]
        answer: Answer = {**top[0], "top_k": top}
        if "probabilities" in one.returns:
            answer["probabilities"] = dict(zip(manifest.labels, posterior[n], strict=True))
        if weights is not None and "components" in one.returns:
            answer["components"] = dict(zip(manifest.labels, weights, strict=True))
        if log_density is not None:
            answer["log_density"] = log_density[n]
        if "features" in one.returns:
            answer["features"] = rounded["features"][n]
        answer["model"] = model
        answers.append(answer)
    return answers


def answer_numbers(manifest: Manifest, options: Options) -> int:
    """How many numbers must be rounded for an answer, or, of those chosen by `top_k`, picked out."""
    head = manifest.head
    each_class = 1 + (head.components if "responsibilities" in manifest.outputs else 0)
    features = head.dim if "features" in options.returns else 0
    return head.classes * each_class + features + 3 * min(options.top_k, head.classes)


def _significant_lists(outputs: Arrays) -> dict[str, Any]:
    """Each array rounded, as nested lists; all in one pass, which for a single image takes most of the time."""
    flat = significant(np.concatenate([values.ravel() for values in outputs.values()]))
    lists: dict[str, Any] = {}
    start = 0
    for name, values in outputs.items():
        lists[name] = flat[start : start + values.size].reshape(values.shape).tolist()
        start += values.size
    return lists


def error_body(error: ServingError) -> Answer:
    """What stands in the place of an answer that could not be given."""
    return {"error": {"code": error.code, "message": str(error)}}


def respond_alone(results: Sequence[Result]) -> StatusAndBody:
    """The HTTP status and body of a request that was one bare image: its answer or error, bare."""
    status, body = respond_each(results)
    return status, body["predictions"][0]


def respond_each(results: Sequence[Result]) -> StatusAndBody:
    """The HTTP status and body of a request with a list of images: `predictions`, in order.

    An error sets the status if its image is alone in the request; among several it only takes its place.
    """
    status = results[0].status if len(results) == 1 and isinstance(results[0], ServingError) else 200
    bodies = [error_body(result) if isinstance(result, ServingError) else result for result in results]
    return status, {"predictions": bodies}


def refuse(error: ServingError) -> StatusAndBody:
    """The HTTP status and body of a request that is refused as a whole."""
    return error.status, error_body(error)


@dataclass(frozen=True)
class Form:
    """How a request is replied to.

    Attributes:
        respond: makes what its images got into its HTTP status and body.
        refuse: does so for the error of the request as a whole.
    """

    respond: Callable[[Sequence[Result]], StatusAndBody]
    refuse: Callable[[ServingError], StatusAndBody] = refuse


ALONE, EACH = Form(respond_alone), Form(respond_each)


def significant(values: NDArray[Any], digits: int = DIGITS) -> NDArray[np.float64]:
    """Round to `digits` significant decimal digits: to the float64 whose shortest form has no more of them."""
    if values.size <= FEW:
        return np.array([float(f"{value:.{digits}g}") for value in values.ravel().tolist()]).reshape(values.shape)
    wide: NDArray[np.float64] = values.astype(np.float64)
    magnitude = np.zeros(wide.shape)
    np.log10(np.abs(wide), out=magnitude, where=np.isfinite(wide) & (wide != 0))
    places = digits - 1 - np.floor(magnitude).astype(int)  # decimal places that stay; negative left of the point
    power = 10.0 ** np.abs(places)
    whole = np.rint(np.where(places < 0, wide / power, wide * power))
    rounded: NDArray[np.float64] = np.where(places < 0, whole * power, whole / power)
    for index in np.argwhere(np.abs(places) > EXACT_POWER):  # the power is not exact, so neither is the division
        at = tuple(index)
        rounded[at] = float(f"{whole[at]:.0f}e{-places[at]}")
    return rounded


def _candidate(
    labels: Sequence[str], posterior: Sequence[float], responsibilities: Sequence[Sequence[float]] | None, index: int
) -> Answer:
    """One class with its probability and, if the head has components, the likeliest of them."""
    candidate: Answer = {"label": labels[index], "probability": posterior[index]}
    if responsibilities is not None:
        weights = responsibilities[index]
        candidate["component"] = max(range(len(weights)), key=weights.__getitem__)
        candidate["component_probability"] = max(weights)
    return candidate
