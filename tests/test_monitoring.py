"""The alerts and the dashboard, judged by a real Prometheus that scrapes a real server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import ROOT
from prometheus import Prometheus, aimed, needs_prometheus, promtool, running_prometheus, wait_out

from serving.torchserve.door import close_door, open_door
from serving.torchserve.state import Server

FOLDER = ROOT / "serving" / "monitoring"
ALERTS = {
    rule["alert"]: rule["expr"]
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
SHOWN = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
VARIABLES = {"$model": ".*", "$version": ".*", "$__rate_interval": "1m"}  # as Grafana fills them in
NOT_NAMES = [
    re.compile(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\bby *\([^)]*\)'),
    re.compile(r"\b[a-z_]+\s*\("),
    re.compile(r"\b(or|unless|offset)\b"),
]


def filled(expression: str) -> str:
    """An expression of the dashboard, for all models."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def names(expression: str) -> set[str]:
    """The metrics of an expression: what is neither text, label, range, function nor number."""
    for pattern in NOT_NAMES:
        expression = pattern.sub(" ", expression)
    return set(re.findall(r"\b[A-Za-z_]\w*", expression))


@pytest.fixture(scope="module")
def events(server: Server, images: list[bytes]) -> None:
    """One request of each kind that leaves its mark: an answer, a bad image, and a refusal by the server."""
    for model in server.models:
        url = f"{server.url}/predictions/{model}"
        statuses = [httpx.post(url, content=body, trust_env=False).status_code for body in (images[0], b"text")]
        close_door(Path(server.tmp))
        try:
            statuses.append(httpx.post(url, content=images[0], trust_env=False).status_code)
        finally:
            open_door(Path(server.tmp))
        assert statuses == [200, 415, 503]


@pytest.fixture(scope="module")
def prometheus(server: Server, events: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus by the project's configuration, but for the address of the server and how often it is asked."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = aimed(yaml.safe_load((FOLDER / "prometheus.yml").read_text()), server)
    config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with running_prometheus(folder / "prometheus.yml") as started:
        yield started


@needs_prometheus
@pytest.mark.parametrize(("kind", "file"), [("rules", "alerts.yml"), ("config", "prometheus.yml")])
def test_promtool_finds_no_fault(kind: str, file: str) -> None:
    status, said = promtool("check", kind, FOLDER / file)

    assert status == 0, said


@needs_prometheus
def test_alerts_fire_when_they_should_and_only_then() -> None:
    status, said = promtool("test", "rules", FOLDER / "alerts_test.yml")

    assert status == 0, said


def test_the_names_in_an_expression() -> None:
    expression = 'sum by (model, le) (rate(a_total{x="$y", z=~"b c"}[5m])) / up > 0.01 * 1e6 + label_replace(c, "d")'
    more = " or (e unless f offset 10m) / on () group_left () g"

    assert names(expression + more) == {"a_total", "up", "c", "e", "f", "g"}


@needs_prometheus
def test_every_metric_that_is_asked_for_is_there(prometheus: Prometheus) -> None:
    asked = set(re.findall(r"label_values\((\w+)", json.dumps(DASHBOARD["templating"])))
    for expression in [*ALERTS.values(), *(filled(expression) for _, expression in SHOWN)]:
        asked |= names(expression)

    assert {"up", "Requests5XX", "discriminant_workers"} <= asked
    wait_out(lambda: asked - prometheus.known())


@needs_prometheus
def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    wait_out(lambda: [title for title, expression in SHOWN if not prometheus.value(filled(expression))])


@needs_prometheus
def test_the_wait_in_the_queue_is_known_of_each_model(prometheus: Prometheus) -> None:
    expression = "sum by (model_name) (ts_queue_latency_seconds_count)"
    wait_out(lambda: not prometheus.value(expression))

    models = {series["metric"]["model_name"] for series in prometheus.value(expression)}
    assert models == {"tiny-mda", "tiny-mda-ts", "tiny-softmax", "tiny-typical"}


@needs_prometheus
def test_every_alert_is_evaluated(prometheus: Prometheus) -> None:
    def rules() -> dict[str, dict[str, Any]]:
        return {rule["name"]: rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]}

    wait_out(lambda: [name for name, rule in rules().items() if rule["health"] == "unknown"])
    assert set(rules()) == set(ALERTS)
    assert {name: rule.get("lastError") for name, rule in rules().items() if rule["health"] != "ok"} == {}
    for expression in ALERTS.values():
        prometheus.value(expression)
    assert prometheus.value('up{job="discriminant"}')[0]["value"][1] == "1"


@needs_prometheus
def test_promtool_reads_the_metrics_and_likes_ours(server: Server, events: None) -> None:
    status, said = promtool("check", "metrics", stdin=httpx.get(server.metrics_url, trust_env=False).text)

    assert status in (0, 3), said  # 3 is for matters of style, which TorchServe's names break
    assert [line for line in said.splitlines() if line.startswith("discriminant_")] == []
