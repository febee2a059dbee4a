"""Kubernetes manifests as the tests see them: rendered by the real kustomize, each object held to its schema.

    for document in rendered("base"): check(document)

A key that a schema does not have is an error. Core objects: kubernetes-validate. KEDA's and the Prometheus operator's:
cloudcoil's models of their definitions, which drop a key that they do not know. KServe's: a pod's spec and a few keys
more, which are listed here as KServe's reference describes them (0.21, serving.kserve.io/v1beta1).
"""

import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule, ServiceMonitor
from conftest import ROOT
from jsonschema import Draft202012Validator

Manifest = dict[str, Any]

DEPLOY = ROOT / "serving" / "deploy"
FOLDERS = {name: DEPLOY / "kubernetes" / name for name in ("base", "autoscaled", "gpu")} | {"kserve": DEPLOY / "kserve"}
KUBERNETES = "1.37"
MODELS = {model.__name__: model for model in (ScaledObject, ServiceMonitor, PodMonitor, PrometheusRule)}
TRIGGER_KEYS = {  # https://keda.sh/docs/2.16/scalers/prometheus: the model calls them a mapping of texts
    *("serverAddress", "query", "threshold", "activationThreshold", "namespace", "customHeaders", "ignoreNullValues"),
    *("queryParameters", "unsafeSsl", "timeout", "authModes"),
}


def closed(required: str = "", **properties: Any) -> Manifest:
    """The schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT, COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
SCALING_RULES = closed(stabilizationWindowSeconds=COUNT, selectPolicy=TEXT, policies={"type": "array"})
EXTERNAL_METRIC = closed(
    "metric target",
    metric=closed("backend serverAddress query", backend={"enum": ["prometheus"]}, serverAddress=TEXT, query=TEXT),
    target=closed("type value", type={"enum": ["Value"]}, value=TEXT),
)
EXTENSION = {  # what a predictor has besides a pod's spec, of that what is used here
    "minReplicas": COUNT,
    "maxReplicas": COUNT,
    "autoScaling": closed(
        "metrics",
        metrics={
            "type": "array",
            "items": closed("type external", type={"enum": ["External"]}, external=EXTERNAL_METRIC),
        },
        behavior=closed(scaleUp=SCALING_RULES, scaleDown=SCALING_RULES),
    ),
}
ANNOTATIONS = closed(
    **{
        "serving.kserve.io/deploymentMode": {"enum": ["Standard", "Knative"]},
        "serving.kserve.io/autoscalerClass": {"enum": ["hpa", "keda", "external", "none"]},
    }
)
INFERENCE_SERVICE = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "serving.kserve.io/v1beta1"},
    kind={"const": "InferenceService"},
    metadata=closed("name", name={"pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}, namespace=TEXT, annotations=ANNOTATIONS),
    spec=closed("predictor", predictor={"type": "object"}),
)


@cache
def _kustomize(folder: Path) -> str:
    """What `kubectl kustomize` of the environment makes of a folder."""
    command = [Path(sysconfig.get_path("scripts")) / "kubectl", "kustomize", folder]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if result.returncode != 0:
        raise ValueError(result.stderr)
    return result.stdout


def rendered(name: str | Path) -> list[Manifest]:
    """The objects that `kubectl apply -k` of a folder would send; the caller may change them.

    Raises:
        ValueError: if kustomize refuses it.
    """
    return list(yaml.safe_load_all(_kustomize(FOLDERS.get(str(name), Path(name)))))


def one(name: str | Path, kind: str) -> Manifest:
    """The only object of its kind among them."""
    (found,) = (document for document in rendered(name) if document["kind"] == kind)
    return found


def check(document: Manifest) -> None:
    """Hold an object to its schema.

    Raises:
        ValueError: if it has a key that it should not have, or lacks one, or a value is of another type.
    """
    if document["kind"] == "InferenceService":
        _check_inference_service(document)
    elif document["kind"] in MODELS:
        _check_model(document)
    else:
        _check_core(document)


def _check_core(document: Manifest) -> None:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as exc:
        raise ValueError(str(exc)) from exc


def _check_model(document: Manifest) -> None:
    model = MODELS[document["kind"]].model_validate(document)
    if lost := _lost(document, model.model_dump(mode="json", by_alias=True, exclude_unset=True)):
        raise ValueError(f"{document['kind']} has no {', '.join(lost)}")
    for trigger in document["spec"].get("triggers", []):
        if unknown := set(trigger["metadata"]) - TRIGGER_KEYS:
            raise ValueError(f"the Prometheus trigger has no {', '.join(sorted(unknown))}")


def _lost(given: Any, known: Any, at: str = "") -> list[str]:
    """Where a model has not kept what it was given."""
    if isinstance(given, dict) and isinstance(known, dict):
        pairs = {key: (value, known.get(key)) for key, value in given.items()}
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        pairs = dict(enumerate(zip(given, known, strict=True)))
    else:
        return [] if given == known else [at]
    return [lost for key, (ours, theirs) in pairs.items() for lost in _lost(ours, theirs, f"{at}.{key}".lstrip("."))]


def _check_inference_service(document: Manifest) -> None:
    predictor = document["spec"].get("predictor", {})
    extension = {key: value for key, value in predictor.items() if key in EXTENSION}
    for schema, part in ((INFERENCE_SERVICE, document), (closed(**EXTENSION), extension)):
        for fault in Draft202012Validator(schema).iter_errors(part):
            raise ValueError(f"{fault.json_path}: {fault.message}")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": document["metadata"]["name"]}}
    _check_core(pod | {"spec": {key: value for key, value in predictor.items() if key not in EXTENSION}})
