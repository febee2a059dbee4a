"""What a worker counts, without a server."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from serving.bundle import Bundle, Manifest
from serving.errors import ImageError
from serving.metrics import Metrics

LABELS = {"model": "tiny-mda", "version": "1"}


@pytest.fixture
def manifest(bundle_dir: Path) -> Manifest:
    return Bundle.load(bundle_dir).manifest


def answer(density: float) -> dict[str, Any]:
    return {"label": "cross", "probability": 0.97, "component": 1, "log_density": density}


def test_images_below_the_first_percentile_are_atypical(manifest: Manifest) -> None:
    quantiles = {"0.01": -20.0, "0.5": 3.0, "0.99": 9.0}
    known = manifest.model_copy(update={"metrics": {"log_density_quantiles": quantiles}})
    registry = CollectorRegistry()
    metrics = Metrics(known, registry)

    metrics.count_request(200, [answer(density) for density in (-50.0, -20.0, 0.0, 5.0, 10.0)])
    assert registry.get_sample_value("discriminant_atypical_images_total", LABELS) == 1
    buckets = [
        registry.get_sample_value("discriminant_log_density_nats_bucket", {**LABELS, "le": le})
        for le in ("-20.0", "3.0", "9.0", "+Inf")
    ]
    assert buckets == [2, 3, 4, 5]


def test_a_bundle_that_does_not_know_its_quantiles(manifest: Manifest) -> None:
    registry = CollectorRegistry()
    Metrics(manifest, registry).count_request(200, [answer(-1e9)])

    assert registry.get_sample_value("discriminant_atypical_images_total", LABELS) == 0
    assert registry.get_sample_value("discriminant_log_density_nats_bucket", {**LABELS, "le": "-1000.0"}) == 1


def test_typicality_has_ten_equal_buckets_and_says_what_is_atypical(typical_dir: Path) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(Bundle.load(typical_dir).manifest, registry)
    shares = [n / 400 for n in range(1, 401)]  # every value that a typicality among 399 images can have
    metrics.count_request(200, [answer(-1e9) | {"typicality": share, "component_name": "tilted"} for share in shares])
    labels = {"model": "tiny-typical", "version": "1"}

    bounds = ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0"]
    counts = [registry.get_sample_value("discriminant_typicality_bucket", {**labels, "le": le}) for le in bounds]
    assert counts == [40 * n for n in range(1, 11)]
    assert registry.get_sample_value("discriminant_atypical_images_total", labels) == 3  # 1, 2 and 3 in 400
    of_component = {**labels, "label": "cross", "component": "1", "component_name": "tilted"}
    assert registry.get_sample_value("discriminant_components_total", of_component) == 400


def test_without_held_out_images_there_is_no_typicality(manifest: Manifest) -> None:
    registry = CollectorRegistry()
    Metrics(manifest, registry).count_request(200, [answer(0.0)])

    assert registry.get_sample_value("discriminant_typicality_count", LABELS) is None
    of_component = {**LABELS, "label": "cross", "component": "1", "component_name": ""}
    assert registry.get_sample_value("discriminant_components_total", of_component) == 1


def test_a_head_without_density(softmax_dir: Path) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(Bundle.load(softmax_dir).manifest, registry)
    metrics.count_request(200, [{"label": "cross", "probability": 0.5}, ImageError("broken")])
    labels = {"model": "tiny-softmax", "version": "1"}

    assert registry.get_sample_value("discriminant_images_total", labels) == 1
    assert registry.get_sample_value("discriminant_image_errors_total", {**labels, "code": "undecodable_image"}) == 1
    assert registry.get_sample_value("discriminant_log_density_nats_count", labels) is None


def test_a_batch_and_its_stages(manifest: Manifest) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(manifest, registry)
    metrics.count_batch(5, 0.03, {"decode": 0.01})

    assert registry.get_sample_value("discriminant_batch_images_sum", LABELS) == 5
    assert registry.get_sample_value("discriminant_batch_seconds_sum", LABELS) == 0.03
    assert registry.get_sample_value("discriminant_stage_seconds_count", {**LABELS, "stage": "decode"}) == 1
    assert registry.get_sample_value("discriminant_stage_seconds_sum", {**LABELS, "stage": "decode"}) == 0.01
