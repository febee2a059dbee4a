"""The alerts and the dashboard, judged by a real Prometheus that scrapes a real server."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import ROOT

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
LISTENS = re.compile(r"Listening on.*address=(127\.0\.0\.1:\d+)")
NOT_NAMES = [
    re.compile(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\bby *\([^)]*\)'),
    re.compile(r"\b[a-z_]+\s*\("),
    re.compile(r"\b(or|unless|offset)\b"),
]
TIMEOUT_S = 30.0
POLL_S = 0.2

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not on the PATH",
)


def promtool(*arguments: object, stdin: str = "") -> tuple[int, str]:
    """What promtool returns and says."""
    command = ["promtool", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=60)
    return result.returncode, result.stdout + result.stderr


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


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self._url}/{path}", params=parameters, timeout=30, trust_env=False).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def known(self) -> set[str]:
        return set(self.get("label/__name__/values"))

    def value(self, expression: str) -> list[Any]:
        return list(self.get("query", query=expression)["result"])


def wait_out(what_is_missing: Callable[[], Any]) -> None:
    """Wait until nothing is missing any more."""
    deadline = time.monotonic() + TIMEOUT_S
    while missing := what_is_missing():
        assert time.monotonic() < deadline, missing
        time.sleep(POLL_S)


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
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
    address = httpx.URL(server.metrics_url).netloc.decode()
    config["scrape_configs"][0]["static_configs"] = [{"targets": [address]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"], stdout=log, stderr=log)
    try:
        wait_out(lambda: not LISTENS.search((folder / "log").read_text()) and f"see {folder / 'log'}")
        yield Prometheus(LISTENS.findall((folder / "log").read_text())[0])
    finally:
        process.terminate()
        process.wait(timeout=30)


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
