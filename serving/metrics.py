"""What a worker counts for Prometheus.

The values of all workers lie in files of one folder, which the launcher names in PROMETHEUS_MULTIPROC_DIR and the
exporter adds up. Without that variable they stay in the process.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram

from serving.bundle import Manifest
from serving.errors import ServingError
from serving.judgement import ATYPICAL_BELOW
from serving.predictor import Stage
from serving.respond import Answer, Result

PREFIX = "discriminant"
SECONDS_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
IMAGES_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
TYPICALITY_BUCKETS = tuple(n / 10 for n in range(1, 11))  # as many images in each, unless they have changed
NATS_BUCKETS = (-1000, -300, -100, -30, -10, 0, 10, 30, 100, 300, 1000)  # for a bundle that does not know its quantiles


class Stopwatch:
    """Adds up how long a batch was in each stage.

    Attributes:
        seconds: by stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {}

    @contextmanager
    def time(self, stage: Stage) -> Iterator[None]:
        """Time what runs inside."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - began


class Metrics:
    """The metrics of one model's worker.

    Args:
        manifest: of the model's bundle.
        registry: where they are found if they stay in the process; one of their own if None.
    """

    def __init__(self, manifest: Manifest, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        quantiles = manifest.metrics.get("log_density_quantiles", {})
        nats = tuple(sorted(set(quantiles.values()))) or NATS_BUCKETS
        below = manifest.atypical_below
        self._density_below = float("-inf") if below is None else below
        names = ("model", "version")
        self._labels = (manifest.name, str(manifest.version))

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, (*names, *more), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *more: str) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, (*names, *more), buckets=buckets, registry=registry)

        self._requests = counter("requests", "Requests by HTTP status.", "status")
        self._errors = counter("image_errors", "Images, or whole requests, that got an error, by its code.", "code")
        of_components = ("label", "component", "component_name")
        self._components = counter("components", "Images by label and mixture component.", *of_components)
        self._stages = histogram("stage_seconds", "Time of one batch in a stage.", SECONDS_BUCKETS, "stage")
        images = counter("images", "Images that were answered.")
        atypical = counter("atypical_images", "Images less typical than 99 % of those that the model is compared with.")
        seconds = histogram("batch_seconds", "Time of one batch in the worker.", SECONDS_BUCKETS)
        batch = histogram("batch_images", "Images in one batch.", IMAGES_BUCKETS)
        confidence = histogram("confidence", "Probability of the likeliest class.", CONFIDENCE_BUCKETS)
        density = histogram("log_density_nats", "Log-density; buckets at the test split's quantiles.", nats)
        typicality = histogram("typicality", "Share of held-out images that are no more typical.", TYPICALITY_BUCKETS)
        self._images, self._atypical_images = images.labels(*self._labels), atypical.labels(*self._labels)
        self._batch, self._confidence = batch.labels(*self._labels), confidence.labels(*self._labels)
        self._seconds = seconds.labels(*self._labels)
        self._density = density.labels(*self._labels) if "log_density" in manifest.outputs else None
        self._typicality = typicality.labels(*self._labels) if manifest.held_out is not None else None

    def count_request(self, status: int, results: Sequence[Result]) -> None:
        """Count a request and what each of its images got."""
        self._requests.labels(*self._labels, str(status)).inc()
        for result in results:
            if isinstance(result, ServingError):
                self._errors.labels(*self._labels, result.code).inc()
            else:
                self._count_answer(result)

    def count_batch(self, images: int, seconds: float, stages: Mapping[Stage, float]) -> None:
        """Count a batch: good images and bad, the time from its arrival in the worker to its answers, and its parts."""
        self._batch.observe(images)
        self._seconds.observe(seconds)
        for stage, part in stages.items():
            self._stages.labels(*self._labels, stage).observe(part)

    def _count_answer(self, answer: Answer) -> None:
        self._images.inc()
        self._confidence.observe(answer["probability"])
        if self._density is not None:
            self._density.observe(answer["log_density"])
        if self._typicality is not None:
            self._typicality.observe(answer["typicality"])
        if self._is_atypical(answer):
            self._atypical_images.inc()
        if "component" in answer:
            component, name = str(answer["component"]), answer.get("component_name", "")
            self._components.labels(*self._labels, answer["label"], component, name).inc()

    def _is_atypical(self, answer: Answer) -> bool:
        """By the typicality, whatever a request calls atypical; without held-out images, by the log-density."""
        if "typicality" in answer:
            return bool(answer["typicality"] < ATYPICAL_BELOW)
        return "log_density" in answer and bool(answer["log_density"] < self._density_below)
