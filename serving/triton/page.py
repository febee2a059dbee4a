"""Our metrics on Triton's own page: what an instance counts is passed on to the server, which adds up all instances.

A histogram becomes what a histogram is to Prometheus: series named `_bucket`, `_sum` and `_count`. So the same queries
work as with any other server. Each value travels by itself into the server's process: therefore they are passed on
once in a while, those that have changed, and not image by image. They are read from prometheus-client's files: there,
as on the page of any other server of ours, a histogram has its sum even where values may be negative.
"""

import logging
import shutil
import threading
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

logger = logging.getLogger(__name__)

PERIOD_S = 1.0

Series = tuple[str, tuple[tuple[str, str], ...]]


class Page:
    """Passes on the values of this process until it is closed.

    Args:
        folder: of prometheus-client's files; removed when closed.
        backend: Triton's module `triton_python_backend_utils`.
        period_s: between two looks.
    """

    def __init__(self, folder: Path, backend: Any, period_s: float = PERIOD_S) -> None:
        self._folder = folder
        self._values = MultiProcessCollector(CollectorRegistry(), str(folder))  # type: ignore[no-untyped-call]
        self._kinds = backend.MetricFamily
        self._families: dict[str, Any] = {}
        self._metrics: dict[Series, Any] = {}
        self._passed: dict[Series, float] = {}
        self._closed = threading.Event()
        self.pass_on()
        self._thread = threading.Thread(target=self._go_on, args=(period_s,), daemon=True)
        self._thread.start()

    def pass_on(self) -> None:
        """Add what has come to the values since the last time to those of the page."""
        for family in self._values.collect():  # type: ignore[no-untyped-call]
            for sample in family.samples:
                series = sample.name, tuple(sample.labels.items())
                metric, change = self._metric(series, family), sample.value - self._passed.get(series, 0)
                if change:
                    metric.increment(change)
                    self._passed[series] = sample.value

    def close(self) -> None:
        """Pass on what is left."""
        self._closed.set()
        self._thread.join()
        self.pass_on()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _go_on(self, period_s: float) -> None:
        while not self._closed.wait(period_s):
            try:
                self.pass_on()
            except Exception:
                logger.exception("The metrics could not be passed on")

    def _metric(self, series: Series, family: Metric) -> Any:
        """The server's metric of a series.

        A sum may become less, which Triton's counters cannot, and some readers take no counter that is not a total.
        """
        name, labels = series
        if series not in self._metrics:
            if name not in self._families:
                kind = self._kinds.COUNTER if name.endswith("_total") else self._kinds.GAUGE
                self._families[name] = self._kinds(name=name, description=family.documentation, kind=kind)
            self._metrics[series] = self._families[name].Metric(labels=dict(labels))
        return self._metrics[series]
