"""The commands of docs/deploy.md, run as far as they can be without a daemon and a cluster."""

import base64
import os
import re
import subprocess
import sysconfig
from pathlib import Path

import yaml
from conftest import ROOT
from manifests import Manifest, check, rendered
from test_readme import blocks

from serving.keys import KEY

PAGE = (ROOT / "docs" / "deploy.md").read_text()
COMMANDS = [line for block in blocks("bash", PAGE) for line in block.splitlines()]
OVERLAY = blocks("yaml", PAGE)[0]


def command(start: str) -> str:
    """The command of the page that begins so."""
    (found,) = (line for line in COMMANDS if line.startswith(start))
    return found


def made(text: str) -> Manifest:
    """The object that a command prints."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    shell = ["bash", "-euo", "pipefail", "-c", text]
    result = subprocess.run(shell, cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    document: Manifest = yaml.safe_load(result.stdout)
    return document


def unsent(text: str) -> str:
    """A command without its last part, which sends to the cluster."""
    text, sent, nothing = text.partition(" | kubectl apply")
    assert (sent, nothing) == (" | kubectl apply", " -f -")
    return text


def test_every_file_that_a_command_names_is_there() -> None:
    named = {path for line in COMMANDS for path in re.findall(r"serving/[\w./-]+", line)}

    assert len(named) >= 8
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_the_secret_holds_a_key_that_the_server_takes() -> None:
    document = made(f"{command('openssl')} --dry-run=client -o yaml")

    check(document)
    assert document["metadata"] == {"name": "discriminant", "namespace": "discriminant"}
    assert KEY.fullmatch(base64.b64decode(document["data"]["inference"]).decode())


def test_the_alerts_become_a_rule_of_the_operator() -> None:
    rule = made(unsent(command("{ printf")))

    check(rule)
    assert rule["spec"] == yaml.safe_load((ROOT / "serving/monitoring/alerts.yml").read_text())


def test_the_dashboard_becomes_what_grafana_looks_for() -> None:
    config = made(unsent(command("kubectl create configmap")))

    check(config)
    assert config["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert config["data"] == {"dashboard.json": (ROOT / "serving/monitoring/dashboard.json").read_text()}


def test_an_overlay_of_ones_own_changes_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "serving").symlink_to(ROOT / "serving")
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text(OVERLAY)

    documents = {document["kind"]: document for document in rendered(tmp_path / "overlay")}

    for document in documents.values():
        check(document)
    assert documents["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == "my.registry/photos:2"
    source = documents["NetworkPolicy"]["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"]
    assert source == {"kubernetes.io/metadata.name": "my-ingress"}
    metadata = documents["ScaledObject"]["spec"]["triggers"][0]["metadata"]
    assert metadata["serverAddress"] == "http://my-prometheus.monitoring:9090"


def test_the_page_is_short() -> None:
    assert len(PAGE.splitlines()) <= 120
