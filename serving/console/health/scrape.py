"""A server's metrics as they are at one moment, read from its exporter.

counts = scrape("http://127.0.0.1:8082/metrics")
counts.by("status", "discriminant_requests_total", model="mnist-mda", version="1")    # {"200": 31.0, "415": 1.0}
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import httpx
from prometheus_client.parser import text_string_to_metric_families

from serving.errors import ServerError
from serving.metrics import PREFIX

TIMEOUT_S = 5.0
GAUGES = ("workers", "workers_ready")
COUNTERS = ("requests", "image_errors", "images", "atypical_images", "components")
HISTOGRAMS = ("batch_seconds", "batch_images", "confidence", "typicality")
OF_TORCHSERVE = ("ts_queue_latency_seconds", "ts_inference_latency_seconds", "Requests4XX", "Requests5XX")
FAMILIES = {*OF_TORCHSERVE, *(f"{PREFIX}_{name}" for name in (*GAUGES, *COUNTERS, *HISTOGRAMS))}

Series = tuple[str, tuple[tuple[str, str], ...]]
"""The name of a metric, and its labels by their names, sorted."""


@dataclass(frozen=True)
class Counts:
    """Values by series: of counters, or what they have grown by."""

    values: Mapping[Series, float]

    def by(self, label: str, name: str, /, **labels: str) -> dict[str, float]:
        """The sum of the series with a name and these labels for each value of another label."""
        sums: dict[str, float] = {}
        for own, value in self.series(name, **labels):
            sums[own.get(label, "")] = sums.get(own.get(label, ""), 0) + value
        return sums

    def series(self, name: str, /, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """All labels and the value of each series with a name and these labels."""
        return ((own, value) for own, value in self._by_name.get(name, ()) if labels.items() <= own.items())

    def sum(self, name: str, /, **labels: str) -> float:
        """The sum of the series with a name and these labels; 0 of none."""
        return sum(self.by("", name, **labels).values())

    @cached_property
    def _by_name(self) -> Mapping[str, list[tuple[dict[str, str], float]]]:
        """Labels and value of each series, by its name."""
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for (name, pairs), value in self.values.items():
            found.setdefault(name, []).append((dict(pairs), value))
        return found


def scrape(url: str) -> Counts:
    """What the metrics at an address are now.

    Raises:
        ServerError: if they are not there.
    """
    try:
        response = httpx.get(url, timeout=TIMEOUT_S, trust_env=False).raise_for_status()
        return read(response.text)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as exc:
        raise ServerError(f"the server's metrics must be at {url}, got {exc}") from exc


def is_ready(url: str) -> bool:
    """Whether the server whose metrics are at an address says that it is ready.

    Raises:
        ServerError: if it says nothing.
    """
    place = httpx.URL(url).join("ready")
    try:
        return httpx.get(place, timeout=TIMEOUT_S, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError as exc:
        raise ServerError(f"the server must say at {place} whether it is ready, got {exc}") from exc


def read(text: str) -> Counts:
    """What the console shows of metrics in Prometheus' text format.

    Raises:
        ValueError: if the text is something else.
    """
    families = [family for family in text_string_to_metric_families(text) if family.name in FAMILIES]
    if not families:
        raise ValueError("no metrics of this server")
    samples = (sample for family in families for sample in family.samples)
    return Counts({(one.name, tuple(sorted(one.labels.items()))): one.value for one in samples})
