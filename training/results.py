"""docs/results.json: every figure that the README states, as commands measured it; docs/metrics: how models learned.

    record("studies", "box-regression", {"iou_original": 0.91})

A figure is stamped with machine, versions and date.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.digests import recipe_digest
from training.files import replace_text
from training.machine import stamp as stamp
from training.recipe import Recipe
from training.run import Run, RunError
from training.stale import ResultsSection
from training.tables import README, START, write_tables

RESULTS = Path("docs/results.json")
EPOCHS_FOLDER = Path("docs/metrics")


def model_figures(report: dict[str, Any], trained: Recipe, recipe_epochs: int) -> dict[str, Any]:
    """What stays of the report (training/report/write.py) of a run, which `trained` a recipe of `recipe_epochs`."""
    run, calibration, components, ood = (report[key] for key in ("run", "calibration", "components", "ood"))
    kept = ("id", "encoder", "head", "dim", "parameters", "epochs", "seconds", "device", "temperature", "splits")
    quality = ("accuracy", "nll", "brier", "ece", "ece_equal_mass", "aurc", "e_aurc", "intervals")
    figures = {key: run[key] for key in kept} | {
        "recipe_epochs": recipe_epochs,
        "digest": recipe_digest(
            trained.model_copy(update={"fit": trained.fit.model_copy(update={"epochs": recipe_epochs})})
        ),
        "components_per_class": run["components"],
        "test_images": calibration["after"]["images"],
        "before": {key: calibration["before"][key] for key in quality},
        "after": {key: calibration["after"][key] for key in quality},
    }
    if components is not None:
        figures["components"] = _component_figures(components)
    if ood:
        figures["ood"] = {key: ood[key] for key in ("sets", "means", "omitted", "missing")}
    return figures | _abstention_figures(report["abstention"])


def _abstention_figures(abstention: dict[str, Any]) -> dict[str, Any]:
    """What stays of the figures of held-out images, where there are some."""
    if abstention["sets"] is None:
        return {}
    of_sets = ("images", "coverage", "mean_size", "classes")
    return {
        "prediction_sets": {
            coverage: None if found is None else {key: found[key] for key in of_sets}
            for coverage, found in abstention["sets"].items()
        },
        "typicality": {key: abstention["typicality"][key] for key in ("images", "held_out", "below")},
    }


def _component_figures(components: dict[str, Any]) -> dict[str, Any]:
    usage = ("occupancy", "mean_normalised_entropy")
    kept = {
        "components": components["components"],
        "covariance": components["covariance"],
        "fitted_by": components["fitted_by"],
        "test": {key: components["test"][key] for key in usage},
        "adjusted_rand": components["repeatability"]["adjusted_rand"],
        "bootstrap_adjusted_rand": components["stability"]["adjusted_rand"],
        "bic_least": components["bic"]["least"],
        "bic_tried": components["bic"]["components"],
    }
    if "calibration" in components:
        kept["calibration"] = components["calibration"]
    if "refit" in components:
        refit = components["refit"]
        kept["refit"] = {key: refit[key] for key in ("accuracy_as_trained", "accuracy", *usage)}
    return kept


def require_project() -> None:
    """Refuse to record outside the project's root, before anything is measured.

    Raises:
        ValueError: if the README with its table of results is not here.
    """
    if not README.is_file() or START not in README.read_text(encoding="utf-8"):
        raise ValueError(f"--record must be given in the project's root, beside its README.md, got {Path.cwd()}")


def require_other_seeds(run: Run, others: Sequence[Run]) -> None:
    """Refuse runs that are not of the same recipe with a seed of their own.

    Raises:
        RunError: if one is not.
    """
    seen = {run.recipe.seed}
    for other in others:
        if other.recipe.model_copy(update={"seed": run.recipe.seed}) != run.recipe:
            raise RunError(f"--seed-run must be of the same recipe as {run.path} but for the seed, got {other.path}")
        if other.recipe.seed in seen:
            raise RunError(f"--seed-run must have a seed of its own, got {other.path} with seed {other.recipe.seed}")
        seen.add(other.recipe.seed)


def load_results(file: Path = RESULTS) -> dict[str, Any]:
    """All results, by section and name; empty if there are none yet."""
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return results


def record(section: ResultsSection, name: str, figures: dict[str, Any], file: Path = RESULTS) -> None:
    """Put figures in the place of those of the same section and name, and write the tables of docs/results.json."""
    results = load_results(file)
    results.setdefault(section, {})[name] = {**figures, **stamp()}
    ordered = {key: dict(sorted(results[key].items())) for key in sorted(results)}
    replace_text(file, json.dumps(ordered, indent=2) + "\n")
    if file == RESULTS:
        write_tables(ordered)


def record_model(run: Run, figures: dict[str, Any]) -> None:
    """Record a run's figures under its recipe's name, and keep the metrics of its epochs in docs/metrics."""
    EPOCHS_FOLDER.mkdir(exist_ok=True)
    replace_text(EPOCHS_FOLDER / f"{run.name}.jsonl", "".join(json.dumps(line) + "\n" for line in run.epochs()))
    record("models", run.name, figures)
