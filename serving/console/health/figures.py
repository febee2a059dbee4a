"""What the page on health shows of each version of each model: plain values, worked out of a server's counters.

    of_models(history, growth, knowledge)    # growth: what the figures of images are of

A model is told by

    workers, workers_ready
    per_second              requests a second over the last minute, by status; None before the second scrape
    request, queue, batch   seconds at the 50th and 99th percentile over the same minute; None without any
    images_a_batch          in the mean, likewise
    answered, atypical      images, and the share of them that is atypical
    confidence              the mean probability of the likeliest class
    typicality              images by tenths of the typicality, which is as many in each as long as nothing has changed
    errors                  images, or whole requests, that got an error, by its code
    is_known                whether its bundle is
    occupancy               of each class, how its images fall on its components (summary/occupancy.py), by their names;
                            None where the bundle is not known, or has one component a class
    past                    requests a second and p99 of a request from scrape to scrape: what the small charts show

`request` is what its sender waits for, less the network: from when TorchServe has all of it until its answer is there;
`queue` is the part of it before a worker takes it. TorchServe counts both by HTTP alone, and for all requests that name
no version together, so they are of all versions of a model. `batch` is a batch's time in the worker.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from serving.batch.summary.occupancy import NOTABLE, compare_all, rank
from serving.bundle import Manifest
from serving.console.backend import Served
from serving.console.context import Knowledge
from serving.console.health.history import Growth, History
from serving.console.health.quantiles import parts, quantile
from serving.console.health.scrape import Counts
from serving.judgement import ATYPICAL_BELOW
from serving.metrics import PREFIX

MINUTE_S = 60.0
PERCENTILES = {"p50": 0.5, "p99": 0.99}

Figures = dict[str, Any]


def models_in(counts: Counts) -> list[Served]:
    """The versions of models that a server has, by name, the newest first; none while TorchServe does not answer."""
    names = counts.by("model", f"{PREFIX}_workers")
    versions = {name: counts.by("version", f"{PREFIX}_workers", model=name) for name in names}
    found = [Served(name, int(one)) for name in names for one in versions[name] if one.isdecimal()]
    return sorted(found, key=lambda one: (one.name, -one.version))


def of_models(history: History, images: Counts, knowledge: Knowledge) -> list[Figures]:
    """The figures of all models.

    Args:
        history: of the server, which has been scraped.
        images: what the counters of images have come to, or grown by in the time that is looked at.
        knowledge: of the models.
    """
    latest = history.latest or Counts({})
    minute = history.over(MINUTE_S)
    return [
        {
            "name": one.name,
            "version": one.version,
            "workers": latest.sum(f"{PREFIX}_workers", **_labels(one)),
            "workers_ready": latest.sum(f"{PREFIX}_workers_ready", **_labels(one)),
            **_load(minute, one),
            "is_known": (known := knowledge.of(one)) is not None,
            **_images(images, one, None if known is None else known.manifest),
            "past": [_point(step, one) for step in history.steps],
        }
        for one in models_in(latest)
    ]


def of_server(history: History) -> Figures:
    """What TorchServe has refused or failed over the last minute, a second; a full queue among it."""
    minute = history.over(MINUTE_S)
    if minute is None:
        return {}
    return {name: minute.counts.sum(f"Requests{name}_total") / minute.lasted_s for name in ("4XX", "5XX")}


def _labels(model: Served) -> dict[str, str]:
    return {"model": model.name, "version": str(model.version)}


def _load(minute: Growth | None, model: Served) -> Figures:
    if minute is None:
        return dict.fromkeys(("per_second", "request", "queue", "batch", "images_a_batch"))
    counts, own = minute.counts, _labels(model)
    requests = counts.by("status", f"{PREFIX}_requests_total", **own)
    batches = counts.sum(f"{PREFIX}_batch_images_count", **own)
    return {
        "per_second": {status: count / minute.lasted_s for status, count in sorted(requests.items())},
        "request": _percentiles(counts, "ts_inference_latency_seconds", model_name=model.name),
        "queue": _percentiles(counts, "ts_queue_latency_seconds", model_name=model.name),
        "batch": _percentiles(counts, f"{PREFIX}_batch_seconds", **own),
        "images_a_batch": counts.sum(f"{PREFIX}_batch_images_sum", **own) / batches if batches else None,
    }


def _images(counts: Counts, model: Served, manifest: Manifest | None) -> Figures:
    own = _labels(model)
    answered = counts.sum(f"{PREFIX}_images_total", **own)
    typicality = parts(counts.by("le", f"{PREFIX}_typicality_bucket", **own))
    tenths = [count for _, count in typicality]
    return {
        "answered": answered,
        "atypical": counts.sum(f"{PREFIX}_atypical_images_total", **own) / answered if answered else None,
        "atypical_expected": ATYPICAL_BELOW,
        "confidence": counts.sum(f"{PREFIX}_confidence_sum", **own) / answered if answered else None,
        "typicality": tenths if sum(tenths) else None,
        "errors": {
            code: count for code, count in counts.by("code", f"{PREFIX}_image_errors_total", **own).items() if count
        },
        "occupancy": None if manifest is None else _occupancy(counts, manifest, own),
    }


def _occupancy(counts: Counts, manifest: Manifest, own: Mapping[str, str]) -> list[Figures] | None:
    """How the images of each class fall on its components, the classes that differ most first."""
    place = {
        (label, str(k)): (n, k) for n, label in enumerate(manifest.labels) for k in range(manifest.head.components)
    }
    found = np.zeros((manifest.head.classes, manifest.head.components), np.int64)
    for labels, count in counts.series(f"{PREFIX}_components_total", **own):
        if (of_bundle := place.get((labels["label"], labels["component"]))) is not None:
            found[of_bundle] += round(count)
    compared = compare_all(manifest, found)
    if compared is None:
        return None
    return [
        {**asdict(one), "is_notable": one.effect in NOTABLE, "names": list(_names(manifest, one.label))}
        for one in sorted(compared, key=rank)
    ]


def _names(manifest: Manifest, label: str) -> Iterator[str]:
    """What the components of a class are called; by their numbers where nobody has named them."""
    names = manifest.component_names.get(label, {})
    return (names.get(k, f"component {k}") for k in range(manifest.head.components))


def _percentiles(counts: Counts, name: str, **labels: str) -> dict[str, float] | None:
    buckets = counts.by("le", f"{name}_bucket", **labels)
    found = {word: quantile(share, buckets) for word, share in PERCENTILES.items()}
    return {word: value for word, value in found.items() if value is not None} or None


def _point(step: Growth, model: Served) -> Figures:
    requests = step.counts.sum(f"{PREFIX}_requests_total", **_labels(model))
    waits = _percentiles(step.counts, "ts_inference_latency_seconds", model_name=model.name)
    return {"until": step.until, "per_second": requests / step.lasted_s, "p99": waits and waits["p99"]}
