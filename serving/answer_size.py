"""How long the answers of a request can be, known before any of its images is decoded.

    sizes = AnswerSizes(manifest, limits)
    sizes.check(request)

TorchServe ends a worker whose answer to one request is longer than it expects. So the longest answer that a model can
give is made by the encoder itself, of the longest labels and numbers, and what it takes as JSON is what an image takes.
"""

from dataclasses import replace
from functools import lru_cache
from typing import get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from serving.bundle import Manifest
from serving.errors import AnswerTooLarge, ServingError
from serving.examples import MOST_CLASSES, Examples
from serving.judgement import FLAGS
from serving.limits import Limits
from serving.parameters import Accept, Options
from serving.predictor import Stage
from serving.request import Request
from serving.respond import Answer, Form, encode

LONGEST_SHARE = 1.234567e-05  # of 0 to 1, with seven digits: 13 characters
LONGEST_NUMBER = -1.234567e15  # 19 characters
LONGEST_COVERAGE = 2.2250738585072014e-308  # a share that comes back as it was sent: 23 characters
ERROR_BYTES = 1024  # what stands in the place of an answer is no longer
KEPT = 16  # of the longest answers, by what is asked for


class AnswerSizes:
    """Refuses requests whose answers could be too long.

    Args:
        manifest: of the model's bundle.
        limits: how many bytes the answers of one request may have.
        examples: of the same bundle, if it has any.
    """

    def __init__(self, manifest: Manifest, limits: Limits, examples: Examples | None = None) -> None:
        self._most = limits.max_response_bytes
        self._classes = manifest.head.classes
        self._longest = lru_cache(KEPT)(lambda options: longest_answer(manifest, options, examples))
        self._of_form = lru_cache(KEPT)(lambda form, options: _sizes(form, self._longest(options)))

    def check(self, request: Request) -> None:
        """Refuse a request whose answers could have more bytes than allowed.

        Raises:
            AnswerTooLarge: which says how many images have answers that are short enough.
        """
        if isinstance(request.images, ServingError):
            return
        count, (head, each) = len(request.images), self.of(request)
        if head + count * each > self._most:
            fewer = (self._most - head) // each
            cure = f"send at most {fewer} images at a time, or " if fewer > 0 else ""
            raise AnswerTooLarge(
                f"answers of one request must have at most {self._most} bytes, got {count} images of up to {each} "
                f"bytes each: {cure}ask for less by parameters.return or outputs"
            )

    def of(self, request: Request) -> tuple[int, int]:
        """The most bytes of a reply: those that do not grow with its images, and those of each image."""
        options = _kind_of(request.options, self._classes)
        if request.form.is_kept:
            return self._of_form(request.form, options)
        return _sizes(request.form, self._longest(options))


def _kind_of(options: Options, classes: int) -> Options:
    """The same for all options whose answers have the same keys."""
    return Options(
        min(options.top_k, classes),
        options.returns,
        coverage=None if options.coverage is None else LONGEST_COVERAGE,
        accept=None if options.accept is None else Accept(),
    )


def _sizes(form: Form, longest: Answer) -> tuple[int, int]:
    one, two = (len(orjson.dumps(form.respond([longest] * count)[1])) for count in (1, 2))
    each = max(two - one, ERROR_BYTES)
    return max(one, ERROR_BYTES) - each, each


def longest_answer(manifest: Manifest, options: Options, examples: Examples | None = None) -> Answer:
    """An answer that is as long as any of a model can be, by what is asked for."""
    head = manifest.head
    shapes = {
        "posterior": (1, head.classes),
        "responsibilities": (1, head.classes, head.components),
        "log_density": (1,),
        "typicality_score": (1,),
        "features": (1, head.dim),
    }
    shares = ("posterior", "responsibilities")
    outputs: dict[str, NDArray[np.float64]] = {
        name: np.full(shapes[name], LONGEST_SHARE if name in shares else LONGEST_NUMBER) for name in manifest.outputs
    }
    if "responsibilities" in outputs:
        outputs["responsibilities"][:, :, -1] *= 2  # the number of the last component is the longest
    labels = sorted(manifest.labels, key=lambda label: -len(orjson.dumps(label)))  # of equals the first ones come first
    longest = manifest.model_copy(update={"labels": tuple(labels), "component_names": _longest_names(manifest)})
    answer = encode(outputs, longest, [replace(options, coverage=None)])[0]
    if manifest.held_out is not None:
        answer["typicality"] = LONGEST_SHARE
    if options.coverage is not None:  # no label is among them: all of the tensor is false, which is longer than true
        answer["labels_at"] = {"coverage": options.coverage, "set": [f"{label} " for label in labels]}
    if manifest.held_out is not None or options.accept is not None:
        answer["flags"] = list(FLAGS)
    if "examples" in options.returns and examples is not None:
        longest_example = {"label": labels[0], "component": head.components - 1, **examples.longest()}
        answer["examples"] = [longest_example] * min(MOST_CLASSES, options.top_k)
    if "timings" in options.returns:
        answer["timings"] = dict.fromkeys(get_args(Stage), LONGEST_NUMBER)
    return answer


def _longest_names(manifest: Manifest) -> dict[str, dict[int, str]]:
    """The longest name of a component, for all of them; none if none has a name."""
    names = [name for of_label in manifest.component_names.values() for name in of_label.values()]
    if not names:
        return {}
    longest = max(names, key=lambda name: len(orjson.dumps(name)))
    return {label: dict.fromkeys(range(manifest.head.components), longest) for label in manifest.labels}
