"""The Compose files, resolved by the real Compose, and the Prometheus configuration that a container gets from them."""

import json
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import ROOT
from manifests import DEPLOY
from prometheus import aimed, needs_prometheus, promtool, running_prometheus, wait_out

import serving.__main__
from serving.keys import INFERENCE_VARIABLE
from serving.torchserve import launch
from serving.torchserve.state import Server

KEY = "a-key-that-stands-nowhere-else"
GPU = ("compose.yaml", "compose.gpu.yaml")
MISSPELT = ["cap_drop", "read_only", "tmpfs", "depends_on", "healthcheck", "start_period", "configs", "environment"]


def compose(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Compose, which needs no daemon for this; the key is in its environment unless it is told otherwise."""
    command = [Path(sysconfig.get_path("scripts")) / "docker-compose", "--project-directory", DEPLOY, *arguments]
    environment = os.environ | {INFERENCE_VARIABLE: KEY} | variables
    return subprocess.run(command, cwd=DEPLOY, env=environment, input=stdin, capture_output=True, text=True, timeout=60)


def resolved(*files: str, **variables: str) -> dict[str, Any]:
    """What Compose makes of the files."""
    chosen = [word for file in files or ("compose.yaml",) for word in ("-f", file)]
    result = compose(*chosen, "config", "--format", "json", **variables)
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def addresses(document: dict[str, Any]) -> dict[str, list[tuple[str, str, int]]]:
    """What each service publishes: address and port of the machine, port of the container."""
    return {
        name: [(port["host_ip"], port["published"], port["target"]) for port in service.get("ports", [])]
        for name, service in document["services"].items()
    }


def inside(document: dict[str, Any], service: str) -> dict[str, Path]:
    """The files that a container gets: where they are in it, and in the repository."""
    mounts = document["services"][service]["configs"]
    return {mount["target"]: Path(document["configs"][mount["source"]]["file"]) for mount in mounts}


@pytest.mark.parametrize("files", [("compose.yaml",), GPU])
def test_compose_finds_no_fault(files: tuple[str, ...]) -> None:
    result = compose(*(word for file in files for word in ("-f", file)), "config", "-q")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("key", MISSPELT)
def test_a_misspelt_key_is_found(key: str) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    wrong = re.sub(rf"^(  +){key}:", rf"\g<1>{key[:-1]}:", text, count=1, flags=re.MULTILINE)
    assert wrong != text

    result = compose("-f", "-", "config", "-q", stdin=wrong)

    assert result.returncode != 0
    assert key[:-1] in result.stderr


def test_it_does_not_start_without_a_key() -> None:
    result = compose("-f", "compose.yaml", "config", "-q", **{INFERENCE_VARIABLE: ""})

    assert result.returncode != 0
    assert f"{INFERENCE_VARIABLE} is missing a value: must be a key" in result.stderr


@pytest.mark.parametrize("files", [("compose.yaml",), GPU])
def test_the_key_reaches_server_and_console_alone(files: tuple[str, ...]) -> None:
    document = resolved(*files)
    for name in ("server", "console"):
        assert document["services"][name]["environment"].pop(INFERENCE_VARIABLE) == KEY
    del document["x-discriminant"]  # from which they have it

    assert KEY not in json.dumps(document)


def test_only_the_loopback_is_published() -> None:
    assert addresses(resolved()) == {
        "server": [("127.0.0.1", "8080", 8080)],
        "console": [("127.0.0.1", "8090", 8090)],
        "prometheus": [("127.0.0.1", "9090", 9090)],
        "grafana": [("127.0.0.1", "3000", 3000)],
    }


def test_the_server_alone_can_be_opened_to_others() -> None:
    opened = addresses(resolved(SERVER_ADDRESS="0.0.0.0"))

    assert opened.pop("server") == [("0.0.0.0", "8080", 8080)]
    assert {address for ports in opened.values() for address, *_ in ports} == {"127.0.0.1"}


@pytest.mark.parametrize("name", ["server", "console", "prometheus", "grafana"])
def test_a_container_may_do_nothing_that_it_need_not(name: str) -> None:
    service = resolved()["services"][name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "pid", "user"} & set(service)
    for volume in service.get("volumes", []):
        assert volume["type"] == "volume" or volume["read_only"] is True


def test_the_server_can_write_where_it_has_to() -> None:
    server = resolved()["services"]["server"]
    (tmp,) = server["tmpfs"]

    assert [volume["target"] for volume in server["volumes"]] == [f"/app/{launch.STATE}"]
    assert tmp.startswith("/tmp:")


def test_images_of_others_are_pinned() -> None:
    document = resolved()
    images = [service["image"] for service in document["services"].values() if "build" not in service]

    assert len(images) == 2
    assert all(re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", image) for image in images)


def test_everything_waits_for_what_it_needs() -> None:
    services = resolved()["services"]
    waits = {name: list(service.get("depends_on", {})) for name, service in services.items()}

    assert waits == {"server": [], "console": ["server"], "prometheus": [], "grafana": ["prometheus"]}
    for service in services.values():
        assert "healthcheck" in service
        assert all(one["condition"] == "service_healthy" for one in service.get("depends_on", {}).values())


def test_a_stop_has_the_time_to_answer_what_was_accepted() -> None:
    assert resolved()["services"]["server"]["stop_grace_period"] == "15s"
    assert launch.LOCK_S + launch.DRAIN_S + launch.STOP_GRACE_S < 15


def test_the_gpu_is_the_servers_alone() -> None:
    services, before = resolved(*GPU)["services"], resolved()["services"]
    (device,) = services["server"]["deploy"]["resources"]["reservations"]["devices"]

    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    build = before["server"]["build"]
    assert services["server"]["build"] == build | {"target": "full", "args": build["args"] | {"DEVICE": "gpu"}}
    assert services["server"]["image"] != before["server"]["image"]
    assert all("deploy" not in service for name, service in services.items() if name != "server")


def test_what_is_mounted_is_in_the_repository() -> None:
    document = resolved()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    mounted = [file for name in ("prometheus", "grafana") for file in inside(document, name).values()]

    assert {str(file.relative_to(ROOT)) for file in mounted} <= set(tracked)
    assert len(mounted) == len(document["configs"]) == 5
    assert ROOT / "serving/monitoring/alerts.yml" in mounted
    assert ROOT / "serving/monitoring/dashboard.json" in mounted


def test_grafana_shows_the_dashboard_from_this_prometheus_to_those_who_may_change_nothing() -> None:
    document = resolved()
    files, environment = inside(document, "grafana"), document["services"]["grafana"]["environment"]
    provisioned = {Path(at).parent.name: yaml.safe_load(file.read_text()) for at, file in files.items() if "yaml" in at}
    (source,) = provisioned["datasources"]["datasources"]
    (provider,) = provisioned["dashboards"]["providers"]
    (dashboard,) = (at for at in files if at.endswith(".json"))

    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert provider["options"]["path"] == str(Path(dashboard).parent)
    assert environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert not any("PASSWORD" in name for name in environment)


@pytest.mark.parametrize("bundle", ["model_store/mnist-mda/1", "model_store/fashion-mnist-mda-best/1"])
def test_the_console_is_shown_the_bundle_that_the_server_serves(bundle: str) -> None:
    services = resolved(BUNDLE=bundle)["services"]
    (volume,) = services["console"]["volumes"]

    assert services["server"]["build"]["args"]["MODELS"] == services["console"]["command"][-1] == bundle
    assert (volume["source"], volume["target"]) == (str(ROOT / bundle), f"/app/{bundle}")
    assert (Path(volume["source"]) / "bundle.json").is_file()


@pytest.mark.parametrize("files", [("compose.yaml",), GPU])
def test_every_image_that_is_built_is_a_stage_of_the_dockerfile(files: tuple[str, ...]) -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    built = [service["build"]["target"] for service in resolved(*files)["services"].values() if "build" in service]

    assert len(built) == 2
    assert set(built) <= stages


def test_the_consoles_command_parses() -> None:
    python, dash, package, name, *arguments = resolved()["services"]["console"]["command"]
    group = typer.main.get_command(serving.__main__.app)

    parsed = group.get_command(typer.Context(group), name).make_context(name, arguments).params
    assert (python, dash, package) == ("python", "-m", "serving")
    assert (parsed["host"], parsed["port"]) == ("0.0.0.0", 8090)
    assert (parsed["url"], parsed["metrics_url"]) == ("http://server:8080", "http://server:8082/metrics")


@needs_prometheus
def test_prometheus_scrapes_the_server_and_loads_the_alerts(server: Server, tmp_path: Path) -> None:
    files = inside(resolved(), "prometheus")
    for at, file in files.items():
        shutil.copy(file, tmp_path / Path(at).name)
    config = tmp_path / "prometheus.yml"
    status, said = promtool("check", "config", config)
    assert status == 0, said
    (job,) = yaml.safe_load(config.read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:8082"]}]
    config.write_text(yaml.safe_dump(aimed(yaml.safe_load(config.read_text()), server)))

    with running_prometheus(config) as prometheus:
        wait_out(lambda: not prometheus.value('up{job="discriminant"} == 1'))
        wait_out(lambda: not prometheus.value("discriminant_workers_ready"))
        rules = [rule["name"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    alerts = yaml.safe_load((ROOT / "serving/monitoring/alerts.yml").read_text())
    assert rules == [rule["alert"] for group in alerts["groups"] for rule in group["rules"]]
