"""The Kubernetes manifests: each object against its schema, the objects against each other and against the server."""

import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import ROOT
from manifests import DEPLOY, FOLDERS, Manifest, check, one, rendered
from prometheus import Prometheus, aimed, needs_prometheus, promtool, running_prometheus, wait_out

from serving.keys import INFERENCE_VARIABLE
from serving.settings import DEFAULT_SETTINGS
from serving.torchserve import launch, memory
from serving.torchserve.state import Server

POD, PREDICTOR = "spec.template.spec", "spec.predictor"
MISSPELT = [
    ("base", "Namespace", "metadata.labels"),
    ("base", "ServiceAccount", "automountServiceAccountToken"),
    ("base", "Deployment", "spec.strategy.rollingUpdate.maxSurge"),
    ("base", "Deployment", f"{POD}.containers.0.startupProbe"),
    ("base", "Deployment", f"{POD}.containers.0.readinessProbe.failureThreshold"),
    ("base", "Deployment", f"{POD}.containers.0.livenessProbe.httpGet.port"),
    ("base", "Deployment", f"{POD}.containers.0.lifecycle.preStop.sleep"),
    ("base", "Deployment", f"{POD}.containers.0.securityContext.readOnlyRootFilesystem"),
    ("base", "Deployment", f"{POD}.containers.0.env.0.valueFrom.secretKeyRef"),
    ("base", "Deployment", f"{POD}.terminationGracePeriodSeconds"),
    ("base", "Deployment", f"{POD}.volumes.0.emptyDir.sizeLimit"),
    ("base", "Service", "spec.ports.0.targetPort"),
    ("base", "PodDisruptionBudget", "spec.maxUnavailable"),
    ("base", "NetworkPolicy", "spec.policyTypes"),
    ("base", "NetworkPolicy", "spec.ingress.0.from"),
    ("autoscaled", "ScaledObject", "spec.scaleTargetRef"),
    ("autoscaled", "ScaledObject", "spec.minReplicaCount"),
    ("autoscaled", "ScaledObject", "spec.advanced.horizontalPodAutoscalerConfig"),
    ("autoscaled", "ScaledObject", "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleDown"),
    ("autoscaled", "ScaledObject", "spec.triggers.0.metricType"),
    ("autoscaled", "ScaledObject", "spec.triggers.0.metadata.threshold"),
    ("autoscaled", "ServiceMonitor", "spec.selector.matchLabels"),
    ("autoscaled", "ServiceMonitor", "spec.endpoints.0.interval"),
    ("gpu", "Deployment", f"{POD}.tolerations.0.operator"),
    ("kserve", "PodMonitor", "spec.podMetricsEndpoints.0.relabelings.0.targetLabel"),
    ("kserve", "InferenceService", "metadata.annotations.serving.kserve.io/autoscalerClass"),
    ("kserve", "InferenceService", PREDICTOR),
    ("kserve", "InferenceService", f"{PREDICTOR}.minReplicas"),
    ("kserve", "InferenceService", f"{PREDICTOR}.containers.0.readinessProbe.periodSeconds"),
    ("kserve", "InferenceService", f"{PREDICTOR}.autoScaling.metrics.0.external.metric.serverAddress"),
    ("kserve", "InferenceService", f"{PREDICTOR}.autoScaling.behavior.scaleDown"),
]
DEPLOYED = ["base", "autoscaled", "gpu"]


def misspelt(node: Any, path: str) -> None:
    """Drop the last letter of the key at `path`, in place; a key may hold dots."""
    if path in node:
        node[path[:-1]] = node.pop(path)
        return
    head, rest = next((key, path[len(key) + 1 :]) for key in map(str, keys(node)) if path.startswith(f"{key}."))
    misspelt(node[int(head)] if isinstance(node, list) else node[head], rest)


def keys(node: Any) -> list[Any]:
    return list(range(len(node))) if isinstance(node, list) else list(node)


def pod(name: str) -> Manifest:
    """The pod's spec, of our Deployment or of KServe's predictor."""
    if name == "kserve":
        return dict(one(name, "InferenceService")["spec"]["predictor"])
    return dict(one(name, "Deployment")["spec"]["template"]["spec"])


def ports(container: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def queries() -> dict[str, tuple[str, Manifest]]:
    """What each autoscaler asks Prometheus, and the labels of a pod that it means."""
    (trigger,) = one("autoscaled", "ScaledObject")["spec"]["triggers"]
    (metric,) = one("kserve", "InferenceService")["spec"]["predictor"]["autoScaling"]["metrics"]
    label = {"namespace": "discriminant"}
    return {
        "keda": (trigger["metadata"]["query"], label | {"pod": "discriminant-6d4-x2x"}),
        "kserve": (metric["external"]["metric"]["query"], label | {"pod": "mnist-mda-predictor-6d4-x2x"}),
    }


@pytest.mark.parametrize("name", FOLDERS)
def test_every_object_keeps_to_its_schema(name: str) -> None:
    documents = rendered(name)

    for document in documents:
        check(document)
    assert len({(document["kind"], document["metadata"]["name"]) for document in documents}) == len(documents)


@pytest.mark.parametrize(("name", "kind", "path"), MISSPELT)
def test_a_misspelt_key_is_found(name: str, kind: str, path: str) -> None:
    document = one(name, kind)
    check(document)

    misspelt(document, path)

    with pytest.raises(ValueError, match=re.split(r"[./]", path)[-1][:-1]):
        check(document)


def test_a_misspelt_key_of_a_kustomization_is_found(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    file = tmp_path / "kubernetes" / "autoscaled" / "kustomization.yaml"
    file.write_text(file.read_text().replace("patches:", "patchse:"))

    with pytest.raises(ValueError, match="patchse"):
        rendered(file.parent)


@pytest.mark.parametrize("name", [*DEPLOYED, "kserve"])
def test_everything_is_in_one_namespace(name: str) -> None:
    documents = rendered(name)

    assert {document["metadata"].get("namespace", document["metadata"]["name"]) for document in documents} == {
        "discriminant"
    }


@pytest.mark.parametrize("name", [*DEPLOYED, "kserve"])
def test_a_pod_may_do_nothing_that_it_need_not(name: str) -> None:
    spec = pod(name)
    (container,) = spec["containers"]

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"--uid {spec['securityContext']['runAsUser']} " in (ROOT / "Dockerfile").read_text()
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {f"/app/{launch.STATE}", "/tmp"}
    assert all(set(volume) == {"name", "emptyDir"} for volume in spec["volumes"])


@pytest.mark.parametrize("name", [*DEPLOYED, "kserve"])
def test_the_key_is_of_a_secret_that_no_file_holds(name: str) -> None:
    (container,) = pod(name)["containers"]

    assert container["env"] == [
        {"name": INFERENCE_VARIABLE, "valueFrom": {"secretKeyRef": {"name": "discriminant", "key": "inference"}}}
    ]
    assert not any(document["kind"] == "Secret" for document in rendered(name))


@pytest.mark.parametrize("name", [*DEPLOYED, "kserve"])
def test_probes_ask_what_the_exporter_answers(name: str, server: Server) -> None:
    (container,) = pod(name)["containers"]
    probes = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}

    assert {ports(container).get(asked["port"], asked["port"]) for asked in probes.values()} == {8082}
    assert [asked["path"] for asked in probes.values()] == ["/ready", "/ready", "/live"]
    for asked in probes.values():
        url = server.metrics_url.replace("/metrics", asked["path"])
        assert httpx.get(url, timeout=30, trust_env=False).status_code == 200
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] > launch.START_TIMEOUT_S


@pytest.mark.parametrize("name", [*DEPLOYED, "kserve"])
def test_a_pod_has_the_time_to_answer_what_it_has_accepted(name: str) -> None:
    spec = pod(name)
    pause = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert pause > 0
    assert spec["terminationGracePeriodSeconds"] >= pause + launch.LOCK_S + launch.DRAIN_S + launch.STOP_GRACE_S


def test_kserve_runs_the_same_pod() -> None:
    ours, theirs = pod("base"), pod("kserve")
    (mine,), (its,) = ours.pop("containers"), theirs.pop("containers")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        mine[probe]["httpGet"]["port"] = ports(mine)[mine[probe]["httpGet"]["port"]]
    for port in its["ports"]:
        assert port.pop("protocol") == "TCP"  # which is the default

    assert (mine | {"name": ""}) == (its | {"name": ""})
    assert its["name"] == "kserve-container"  # by which KServe knows it
    assert its["ports"][0]["name"] == "http"  # KServe sends requests to the first
    both = set(ours) & set(theirs)
    assert {key: ours[key] for key in both} == {key: theirs[key] for key in both}
    assert {"securityContext", "volumes", "terminationGracePeriodSeconds"} <= both


@pytest.mark.parametrize("name", DEPLOYED)
def test_whoever_selects_pods_selects_the_servers(name: str) -> None:
    deployment = one(name, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (spread,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]

    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert one(name, "Service")["spec"]["selector"] == labels
    assert one(name, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert one(name, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    assert spread["labelSelector"]["matchLabels"] == labels
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    assert account == one(name, "ServiceAccount")["metadata"]["name"]


def test_a_service_sends_to_ports_that_the_container_has() -> None:
    targets = {port["name"]: port["targetPort"] for port in one("base", "Service")["spec"]["ports"]}

    assert targets == {"http": "http", "metrics": "metrics"}
    assert ports(pod("base")["containers"][0]) == {"http": 8080, "metrics": 8082}


@pytest.mark.parametrize("name", DEPLOYED)
def test_only_requests_and_scrapes_come_in_and_nothing_goes_out(name: str) -> None:
    policy = one(name, "NetworkPolicy")["spec"]
    open_to = {
        rule["ports"][0]["port"]: rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for rule in policy["ingress"]
    }

    assert open_to == {"http": "ingress-nginx", "metrics": "monitoring"}
    assert all(len(rule["ports"]) == len(rule["from"]) == 1 for rule in policy["ingress"])
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy.get("egress", []) == []


@pytest.mark.parametrize("name", DEPLOYED)
def test_one_pod_is_always_there(name: str) -> None:
    deployment, budget = one(name, "Deployment")["spec"], one(name, "PodDisruptionBudget")["spec"]
    least = deployment["replicas"] if name == "base" else one(name, "ScaledObject")["spec"]["minReplicaCount"]

    assert least - budget["maxUnavailable"] >= 1
    assert least - deployment["strategy"]["rollingUpdate"]["maxUnavailable"] >= 1


@pytest.mark.parametrize("name", ["autoscaled", "gpu"])
def test_keda_scales_the_deployment_and_nobody_else_does(name: str) -> None:
    scaled = one(name, "ScaledObject")

    assert scaled["spec"]["scaleTargetRef"]["name"] == one(name, "Deployment")["metadata"]["name"]
    assert "replicas" not in one(name, "Deployment")["spec"]
    assert scaled["spec"]["triggers"][0]["metadata"]["ignoreNullValues"] == "false"


def test_the_queue_can_be_longer_than_what_makes_keda_add_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    container = pod("base")["containers"][0]["resources"]["limits"]
    monkeypatch.setattr(memory, "cores", lambda: int(container["cpu"]))
    threshold = float(one("autoscaled", "ScaledObject")["spec"]["triggers"][0]["metadata"]["threshold"])
    bytes_of = {f"{gib}Gi": gib * 2**30 for gib in (4, 8)}

    queues = {
        given: memory.divide(size, [DEFAULT_SETTINGS.batch_size], DEFAULT_SETTINGS.limits.max_request_bytes).queue
        for given, size in bytes_of.items()
    }
    assert queues == {"4Gi": 22, "8Gi": 112}  # which docs/deploy.md says
    assert 5 * threshold <= queues[container["memory"]]


def test_kserve_scales_as_keda_does() -> None:
    trigger = one("autoscaled", "ScaledObject")["spec"]["triggers"][0]
    predictor = one("kserve", "InferenceService")["spec"]["predictor"]
    metric = predictor["autoScaling"]["metrics"][0]["external"]

    assert queries()["kserve"][0] == queries()["keda"][0].replace('"discriminant-.*"', '"mnist-mda-predictor-.*"')
    assert metric["metric"]["serverAddress"] == trigger["metadata"]["serverAddress"]
    assert metric["target"]["value"] == trigger["metadata"]["threshold"]
    assert trigger["metricType"] == "AverageValue"  # which is what KServe's trigger has


def test_the_model_is_called_what_kserve_calls_the_service() -> None:
    name = one("kserve", "InferenceService")["metadata"]["name"]

    assert f'ARG MODELS="model_store/{name}/1"' in (ROOT / "Dockerfile").read_text()


def test_scrapes_are_of_the_metrics_port_and_of_the_job_that_the_alerts_ask_for() -> None:
    (job,) = set(re.findall(r'job="(\w+)"', (ROOT / "serving/monitoring/alerts.yml").read_text()))
    service = one("autoscaled", "Service")
    monitor, pods = one("autoscaled", "ServiceMonitor")["spec"], one("kserve", "PodMonitor")["spec"]

    assert service["metadata"]["name"] == job  # the job of a ServiceMonitor is the Service's name
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert pods["podMetricsEndpoints"][0]["relabelings"] == [{"targetLabel": "job", "replacement": job}]
    isvc = one("kserve", "InferenceService")["metadata"]["name"]
    assert pods["selector"]["matchLabels"] == {"serving.kserve.io/inferenceservice": isvc}
    for endpoint in (*monitor["endpoints"], *pods["podMetricsEndpoints"]):
        assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")


def test_the_gpu_is_asked_for_where_the_others_ask_for_none() -> None:
    limits = {name: pod(name)["containers"][0]["resources"]["limits"] for name in DEPLOYED}

    assert limits["gpu"].pop("nvidia.com/gpu") == "1"
    assert all("nvidia.com/gpu" not in of_pod for of_pod in limits.values())
    assert pod("gpu")["containers"][0]["image"].endswith("-gpu")
    assert pod("autoscaled")["containers"][0]["image"].endswith("-slim")


@needs_prometheus
@pytest.mark.parametrize("name", ["keda", "kserve"])
def test_a_query_is_how_many_requests_wait(name: str, tmp_path: Path) -> None:
    query, labels = queries()[name]
    mine = ", ".join(f'{key}="{value}"' for key, value in labels.items())
    waited, workers = "ts_queue_latency_seconds_sum", "discriminant_workers"
    others = [f'{waited}{{namespace="other", pod="{labels["pod"]}"}}', f'{waited}{{namespace="discriminant", pod="x"}}']
    busy = {f'{waited}{{{mine}, model_name="a"}}': "0+120x9", f'{waited}{{{mine}, model_name="b"}}': "0+60x9"}
    cases = [
        ({**busy, **dict.fromkeys(others, "0+600x9")}, [{"value": 3}]),  # 2 s and 1 s are waited a second
        ({f"{workers}{{{mine}}}": "1x9"}, [{"value": 0}]),
        (dict.fromkeys(others, "0+600x9"), []),
    ]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in given.items()],
            "promql_expr_test": [{"expr": query.replace("[1m]", "[2m]"), "eval_time": "9m", "exp_samples": samples}],
        }
        for given, samples in cases
    ]
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": tests}))

    status, said = promtool("test", "rules", tmp_path / "test.yml")

    assert status == 0, said


@needs_prometheus
def test_a_real_server_has_the_metrics_that_a_query_asks_for(
    server: Server, images: list[bytes], tmp_path: Path
) -> None:
    asked = [part for query, _ in queries().values() for part in (query, *query.split(" or "))]
    jobs = [{"scrape_configs": [{"job_name": name}]} for name in queries()]
    configs = [aimed(job, server, **labels) for job, (_, labels) in zip(jobs, queries().values(), strict=True)]
    both = {"scrape_configs": [config["scrape_configs"][0] for config in configs]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configs[0] | both))

    def missing(prometheus: Prometheus) -> list[str]:
        url = f"{server.url}/predictions/{server.models[0]}"
        assert httpx.post(url, content=images[0], timeout=60, trust_env=False).status_code == 200
        return [query for query in asked if len(prometheus.value(query)) != 1]

    with running_prometheus(tmp_path / "prometheus.yml") as prometheus:
        wait_out(lambda: missing(prometheus))
        waits = [float(prometheus.value(query)[0]["value"][1]) for query, _ in queries().values()]
        assert all(0 <= wait < 1 for wait in waits)  # a lone client waits for nobody
