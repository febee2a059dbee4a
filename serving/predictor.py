"""The predictor: bytes → decode → infer → encode → answers, without any server in it.

    predictor = Predictor.open("model_store/mnist-mda/1")
    [answer] = predictor.predict([Path("seven.png").read_bytes()])

Servers call `predict_together`; the scorer of folders composes `decode`, `infer` and `encode` in threads of its own. So
all of them answer the same.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from serving.budget import NUMBER_S, UNLIMITED, Allowance, Pace, PaceMeter
from serving.bundle import Bundle, Precision
from serving.errors import BadParameter, BundleError, ServingError
from serving.examples import check_examples, read_examples
from serving.held_out import HeldOut
from serving.intake import Decoded, Images, Intake
from serving.judgement import check_options
from serving.limits import DEFAULT_LIMITS, Limits
from serving.parameters import DEFAULT_OPTIONS, Options
from serving.preprocess import read_image
from serving.respond import Answer, Result, answer_numbers, encode
from serving.runtimes import Outputs, RuntimeName, open_runtime

# How far a runtime may be from the golden outputs: absolute, and relative to the value. One step of rounding, which
# other hardware may take the other way, moves an activation by a 255th of its range in int8, in float16 by a 2048th of
# itself.
TOLERANCES: dict[Precision, dict[str, tuple[float, float]]] = {
    "float32": {
        "posterior": (1e-4, 0.0),
        "responsibilities": (1e-3, 0.0),
        "log_density": (1e-2, 1e-3),
        "typicality_score": (1e-2, 1e-3),
        "features": (1e-2, 1e-3),
    },
    "float16": {
        "posterior": (0.02, 0.0),
        "responsibilities": (0.1, 0.0),
        "log_density": (0.5, 0.02),
        "typicality_score": (0.1, 0.02),
        "features": (0.02, 0.01),
    },
    "int8": {
        "posterior": (0.05, 0.0),
        "responsibilities": (0.2, 0.0),
        "log_density": (1.0, 0.05),
        "typicality_score": (0.3, 0.05),
        "features": (0.2, 0.05),
    },
}

TIMED_RUNS = 3  # of the golden inputs; the fastest says what an image takes

Results = list[Result] | ServingError
Stage = Literal["decode", "inference", "encode"]
Timer = Callable[[Stage], AbstractContextManager[Any]]
Work = tuple[Images, Options]


class Predictor:
    """Answers images with one bundle on one device. Decoding may be called from several threads at once.

    Attributes:
        bundle: whose graph it runs.
        held_out: what this graph has answered for held-out images, if the bundle has any.
        limits: what one request may ask for.
    """

    def __init__(
        self,
        bundle: Bundle,
        runtime: RuntimeName = "onnx",
        device: str = "cpu",
        threads: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
        max_batch: int = 64,
        precision: Precision = "float32",
    ) -> None:
        """Load the bundle's graph.

        Args:
            bundle: a verified bundle.
            runtime: `onnx` or `torchscript`.
            device: `cpu`, `cuda` or `cuda:N`.
            threads: of one inference on the CPU, and of decoding photos; None leaves the first to the runtime and the
                second to the caller.
            limits: bytes and pixels of one image, and pixels of those of one request.
            max_batch: images in one call of the graph.
            precision: `float16` and `int8` run the bundle's variants of these names.

        Raises:
            DeviceUnavailable: if the device is not there.
            BundleError: if the runtime cannot read the graph, or a file of it holds something else.
        """
        self.bundle = bundle
        self.limits = limits
        self._max_batch = max_batch
        self._precision: Precision = precision
        self._run = open_runtime(bundle, runtime, device, threads, precision)
        held_out = bundle.held_out(precision)
        self.held_out = None if held_out is None else HeldOut.read(held_out)
        self.examples = read_examples(bundle)
        self._intake = Intake(bundle.manifest.input, limits, threads)
        self._meter = PaceMeter()

    @classmethod
    def open(
        cls,
        path: str | Path,
        runtime: RuntimeName = "onnx",
        device: str = "cpu",
        threads: int | None = None,
        precision: Precision = "float32",
    ) -> Self:
        """Load and verify the bundle in folder `path`; the rest is as in the constructor."""
        return cls(Bundle.load(path), runtime, device, threads, precision=precision)

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """One encoded image → (channels, height, width), as the graph takes it.

        Raises:
            ImageError: or one of its subclasses, if the image cannot be answered.
        """
        return read_image(data, self.bundle.manifest.input, self.limits)

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """Run the graph on (N, channels, height, width), N ≥ 1, in batches of at most `max_batch`."""
        began = time.perf_counter()
        starts = range(0, len(images), self._max_batch)
        parts = [self._run(images[start : start + self._max_batch]) for start in starts]
        self._meter.learn(len(images), time.perf_counter() - began)
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def encode(self, outputs: Outputs, options: Sequence[Options]) -> list[Answer]:
        """The graph's outputs for N images → N answers, each by its options."""
        answers = encode(outputs, self.bundle.manifest, options, self.held_out)
        if self.examples is not None:
            self.examples.add_to(answers, options, self.bundle.manifest.labels)
        return answers

    def predict(self, images: Sequence[bytes | ServingError], options: Options = DEFAULT_OPTIONS) -> list[Result]:
        """Answer the images of one request in order; one that cannot be answered gets its error in its place.

        An error among `images` is passed through, so that a reader can put it where an image should have been.

        Raises:
            BadParameter: if the options ask for what the model cannot tell.
            ImageTooLarge: if the images have more pixels together than a request may.
        """
        outcome = self.predict_together([(images, options)])[0]
        if isinstance(outcome, ServingError):
            raise outcome
        return outcome

    def predict_together(
        self, work: Sequence[Work], timer: Timer = nullcontext, allowance: Allowance = UNLIMITED
    ) -> list[Results]:
        """Answer several requests, each with its own options, by one call of the graph.

        Args:
            work: images and options of each request; an error instead of its images is passed through.
            timer: makes a context manager that each stage runs in.
            allowance: what all of it may take.

        Returns:
            What the images of each request got; or, for a request that asks for too much or that there is no time
            for, or for what the model cannot tell, its error. None of its images has been decoded then.
        """
        with timer("decode"):
            paces = [self._pace(options) for _, options in work]
            taken = self._intake.decode([self._checked(*one) for one in work], paces, allowance)
        decoded = [image for images in taken if isinstance(images, list) for image in images]
        chosen = [one for images, (_, one) in zip(taken, work, strict=True) if isinstance(images, list) for _ in images]
        results = iter(self._answer(decoded, chosen, timer))
        return [list(islice(results, len(items))) if isinstance(items, list) else items for items in taken]

    def warm_up(self) -> None:
        """Run the bundle's golden inputs, which also makes the first request as fast as the next, and time them.

        Raises:
            BundleError: if the answers are not the golden ones: such a runtime must not serve.
        """
        images, expected = self.bundle.read_golden(self._precision)
        file, tolerances = self.bundle.golden(self._precision), TOLERANCES[self._precision]
        for count in (len(images), 1):  # a lone image is computed by other threads than a batch
            outputs = self.infer(images[:count])
            for name in self.bundle.manifest.outputs:
                _check_golden(name, outputs[name], expected[name][:count], tolerances[name], file)
        for _ in range(TIMED_RUNS):
            self.infer(images)

    def _checked(self, images: Images, options: Options) -> Images:
        """The images of a request, or the error of one that asks for what the model cannot tell."""
        try:
            check_options(options, self.bundle.manifest, self.held_out)
            check_examples(options, self.examples, self.bundle.manifest.name)
        except BadParameter as error:
            return error
        return images

    def _pace(self, options: Options) -> Pace:
        """What an image takes once it is decoded: the graph, and the answer."""
        return self._meter.pace.plus(NUMBER_S * answer_numbers(self.bundle.manifest, options))

    def _answer(self, decoded: Sequence[Decoded], options: Sequence[Options], timer: Timer) -> list[Result]:
        """Infer and encode what is decoded, each by its options; errors stay in their places."""
        good = [(item, one) for item, one in zip(decoded, options, strict=True) if not isinstance(item, ServingError)]
        answers: Iterator[Answer] = iter(())
        if good:
            with timer("inference"):
                outputs = self.infer(np.stack([array for array, _ in good]))
            with timer("encode"):
                answers = iter(self.encode(outputs, [one for _, one in good]))
        return [item if isinstance(item, ServingError) else next(answers) for item in decoded]


def _check_golden(
    name: str, actual: NDArray[np.floating], expected: NDArray[np.floating], tolerance: tuple[float, float], file: Path
) -> None:
    absolute, relative = tolerance
    if actual.shape != expected.shape:
        raise BundleError(f"{name} must have shape {expected.shape} as in {file}, got {actual.shape}")
    difference, allowed = np.abs(actual - expected), absolute + relative * np.abs(expected)
    excess = difference - allowed
    if not np.all(excess <= 0):  # written so that NaN fails
        worst = np.unravel_index(np.argmax(excess), excess.shape)  # NaN, if there is one
        raise BundleError(
            f"{name} must be within {allowed[worst]:.3g} of {expected[worst]:.6g} as in {file}, "
            f"got a difference of {difference[worst]:.3g}"
        )
