"""Answering: the graph's outputs → the answer schema.

    {"label": "7", "probability": 0.981, "component": 1, "component_name": "crossed", "component_probability": 0.93,
     "top_k": [{"label": "7", "probability": 0.981, "component": 1, ...}, ...],
     "probabilities": {"0": ..., "9": ...}, "components": {"7": [0.07, 0.93], ...},
     "log_density": -1.93, "typicality": 0.41, "labels_at": {"coverage": 0.9, "set": ["7"]}, "flags": [],
     "model": {"name": "mnist-mda", "version": "1"}}

What a model cannot tell is left out: softmax and SVM models have no components and no log-density, bundles without
held-out images no typicality and no flags. `labels_at` is there if a request names a coverage. Numbers are plain
floats with 7 significant digits: all that float32 holds, and short as JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Manifest
from serving.errors import ServingError
from serving.held_out import HeldOut
from serving.judgement import flags, prediction_sets, under_priors
from serving.parameters import Options

DIGITS = 7
FEW = 200  # numbers that are rounded faster one by one
EXACT_POWER = 22  # the greatest power of ten that is a float64

Answer = dict[str, Any]
Result = Answer | ServingError
Arrays = Mapping[str, NDArray[Any]]
StatusAndBody = tuple[int, Answer]


def encode(
    outputs: Arrays, manifest: Manifest, options: Sequence[Options], held_out: HeldOut | None = None
) -> list[Answer]:
    """Turn the outputs for N images into N answers.

    Args:
        outputs: arrays by the names of `manifest.outputs`, each (N, ...).
        manifest: of the bundle that computed them.
        options: the client's choices for each image, which the model can do.
        held_out: of the same bundle and precision, if it has any.
    """
    posterior = under_priors(outputs["posterior"], manifest, options)
    ranked = np.argsort(-posterior, axis=1, kind="stable")[:, : max(one.top_k for one in options)].tolist()
    sets = prediction_sets(outputs["posterior"], posterior, manifest.labels, options, held_out)
    rounded = _significant_lists(_numbers(outputs, posterior, options, held_out))
    model = {"name": manifest.name, "version": str(manifest.version)}

    answers = []
    for n, one in enumerate(options):
        values = {name: column[n] for name, column in rounded.items()}
        answer = _answer(values, ranked[n], manifest, one)
        if n in sets:
            answer["labels_at"] = {"coverage": one.coverage, "set": sets[n]}
        if held_out is not None or one.accept is not None:
            answer["flags"] = flags(answer["probability"], answer.get("typicality"), one, held_out)
        if "features" in one.returns:
            answer["features"] = values["features"]
        answer["model"] = model
        answers.append(answer)
    return answers


def _numbers(
    outputs: Arrays, posterior: NDArray[Any], options: Sequence[Options], held_out: HeldOut | None
) -> dict[str, NDArray[Any]]:
    """What the answers hold of numbers, by its names; the features only if anybody wants them."""
    numbers = {name: outputs[name] for name in ("responsibilities", "log_density") if name in outputs}
    numbers["posterior"] = posterior
    if held_out is not None:
        numbers["typicality"] = held_out.typicality(outputs["typicality_score"])
    if any("features" in one.returns for one in options):
        numbers["features"] = outputs["features"]
    return numbers


def _answer(values: Mapping[str, Any], ranked: Sequence[int], manifest: Manifest, options: Options) -> Answer:
    """What the graph says of one image: `values` by the names of its outputs, rounded; the classes, likeliest first."""
    top = [_candidate(values, c, manifest) for c in ranked[: options.top_k]]
    answer: Answer = {**top[0], "top_k": top}
    if "probabilities" in options.returns:
        answer["probabilities"] = dict(zip(manifest.labels, values["posterior"], strict=True))
    if "responsibilities" in values and "components" in options.returns:
        answer["components"] = dict(zip(manifest.labels, values["responsibilities"], strict=True))
    for name in ("log_density", "typicality"):
        if name in values:
            answer[name] = values[name]
    return answer


def _candidate(values: Mapping[str, Any], index: int, manifest: Manifest) -> Answer:
    """One class with its probability and, if the head has components, the likeliest of them."""
    label = manifest.labels[index]
    candidate: Answer = {"label": label, "probability": values["posterior"][index]}
    if "responsibilities" in values:
        weights = values["responsibilities"][index]
        component = max(range(len(weights)), key=weights.__getitem__)
        candidate["component"] = component
        if (name := manifest.component_names.get(label, {}).get(component)) is not None:
            candidate["component_name"] = name
        candidate["component_probability"] = max(weights)
    return candidate


def answer_numbers(manifest: Manifest, options: Options) -> int:
    """How many numbers must be rounded for an answer, or, of those chosen by `top_k`, picked out."""
    head = manifest.head
    each_class = 1 + (head.components if "responsibilities" in manifest.outputs else 0)
    features = head.dim if "features" in options.returns else 0
    ranked = 0 if options.coverage is None else head.classes
    return head.classes * each_class + features + ranked + 3 * min(options.top_k, head.classes)


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
        is_kept: whether the same form replies to many requests.
    """

    respond: Callable[[Sequence[Result]], StatusAndBody]
    refuse: Callable[[ServingError], StatusAndBody] = refuse
    is_kept: bool = False


ALONE, EACH = Form(respond_alone, is_kept=True), Form(respond_each, is_kept=True)


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
