"""The facts of a run that a report begins with: what was trained, on what, where and for how long."""

from pathlib import Path
from typing import Any

from training.analysis.evidence import Evidence
from training.duplicates import in_words
from training.heads import DiscriminantHead

NOT_OF_EVERY_RUN = ("backbone", "precision", "epochs_from", "taken_over", "resumed", "duplicates")


def run_facts(evidence: Evidence) -> dict[str, Any]:
    """What was trained, on what, where and for how long; `seconds` are those of the epochs, without the refit.

    With `epochs_from` and `taken_over` if another run trained them, `resumed` if the run was interrupted, and
    `backbone` and `duplicates` unless the run is from before they were recorded.
    """
    run, head = evidence.run, evidence.classifier.head
    description, epochs = run.description(), run.epochs()
    gaussians = head.gaussians if isinstance(head, DiscriminantHead) else None
    return {
        "recipe": run.name,
        "id": run.path.name,
        "data": evidence.dataset.name,
        "splits": description["dataset"]["splits"],
        "fingerprint": description["dataset"]["fingerprint"],
        "classes": list(evidence.dataset.classes),
        "encoder": evidence.classifier.architecture.encoder.kind,
        "head": evidence.classifier.architecture.head.kind,
        "covariance": gaussians and gaussians.covariance,
        "one_covariance": gaussians is not None and gaussians.shared,
        "dim": head.dim,
        "components": head.components,
        "parameters": sum(p.numel() for p in evidence.classifier.parameters()),
        "epochs": len(epochs),
        "seconds": round(sum(line["seconds"] for line in epochs), 1),
        "device": description["device"],
        "versions": description["versions"],
        "started": description["started"],
        **{key: description[key] for key in NOT_OF_EVERY_RUN if key in description},
        **({"epochs_from": _named(description["epochs_from"])} if "epochs_from" in description else {}),
        "temperature": evidence.classifier.temperature,
        "sample": len(evidence.train.labels),
    }


def facts_in_words(run: dict[str, Any], log_density: float | None) -> list[list[str]]:
    """Rows of a table of `run_facts` and the mean log-density of test images in nats, if there is one."""
    splits = ", ".join(f"{name} {count:,}" for name, count in run["splits"].items())
    one = "one " if run["one_covariance"] else ""
    covariance = f", {one}{run['covariance']} covariance" if run["covariance"] else ""
    of_class = f", {run['components']} components a class" if run["components"] > 1 else ""
    rows = [
        ["recipe", run["recipe"]],
        ["data", f"{run['data']}: {splits}; {len(run['classes'])} classes"],
        ["network", f"{run['encoder']}, {run['dim']} features, {run['parameters']:,} parameters"],
        *([["backbone", _backbone(run["backbone"])]] if run.get("backbone") else []),
        ["head", f"{run['head']}{covariance}{of_class}"],
        ["training", _history(run)],
        ["versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items())],
        ["temperature", f"{run['temperature']:.4g}"],
        ["training images in the statistics", f"{run['sample']:,}"],
        ["fingerprint of the data", run["fingerprint"]],
    ]
    if "duplicates" in run:
        rows.append(["duplicates", "; ".join(in_words(run["duplicates"])) or "none found"])
    return rows if log_density is None else [*rows, ["mean log-density of test images", f"{log_density:.2f} nats"]]


def _backbone(backbone: dict[str, Any]) -> str:
    """Where a backbone's weights are from, their digest, and under what licence the published ones are."""
    sha256 = f" (SHA-256 {backbone['sha256']})" if backbone["sha256"] else ""
    return f"weights: {backbone['weights']}{sha256}; licence of those published: {backbone['licence'] or 'not stated'}"


def _history(run: dict[str, Any]) -> str:
    """When and on what the run was begun and resumed, and whose epochs it took."""
    begun = f"{run['epochs']} epochs in {run['seconds']:,.1f} s"
    if run.get("epochs_from"):
        begun += f" of the run {run['epochs_from']}"
    parts = [f"{begun}; begun {run['started']} on {_circumstances(run)}"]
    if taken := run.get("taken_over"):
        parts.append(f"taken over {taken['started']} on {_circumstances(taken)}")
    for resumed in run.get("resumed", []):
        parts.append(f"resumed {resumed['at']} after epoch {resumed['after_epoch']} on {_circumstances(resumed)}")
    return "; ".join(parts)


def _named(run_path: str) -> str:
    """A run without its place on the machine: recipe/id."""
    return "/".join(Path(run_path).parts[-2:])


def _circumstances(run: dict[str, Any]) -> str:
    precision = run.get("precision")
    return f"{run['device']} in {precision['chosen']}" if precision else str(run["device"])
