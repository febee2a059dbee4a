"""A run's report: one HTML page that explains what the network does, its pictures, and every figure as JSON.

    python -m training report runs/digits-mda/demo        # runs/digits-mda/demo/report/index.html

The page needs no other file and asks nothing of a network. `report.json` has the same figures for programs.
"""

import json
from pathlib import Path
from typing import Any

import torch

from serving.bundle import staged
from training.analysis.abstention import abstention_figures
from training.analysis.components import component_figures
from training.analysis.diagnostics import (
    calibration_figures,
    class_accuracy,
    class_distances,
    confused_pairs,
    confusion_counts,
)
from training.analysis.evidence import SAMPLE, Evidence, gather
from training.analysis.ood import ood_of
from training.component_names import names_for_run
from training.data import Sources
from training.progress import say
from training.report.facts import run_facts
from training.report.page import PAGE, write_page
from training.report.sections import sections_of
from training.run import Run

FIGURES = "report.json"
MOST_PAIRS = 15  # of confused, and of close classes


def write_report(
    run: Run,
    sources: Sources,
    out: Path | None = None,
    *,
    images: bool = True,
    device: torch.device | None = None,
    sample: int = SAMPLE,
    names: Path | None = None,
) -> Path:
    """Write the report of a finished run.

    Args:
        run: which.
        sources: where its images are, and those of the data sets that are strange to it.
        out: the folder to write; <run>/report if left out. A report that is there is replaced.
        images: whether to show images of the data set; without them the page may be published.
        device: where the network runs; the CPU if left out.
        sample: about how many training images the statistics of features and components are from.
        names: a file of names for the components, or a bundle that has them (see `read_component_names`).

    Returns:
        The page.

    Raises:
        RunError: if the run is not finished or the images are not those that it was trained on.
        DataError: if its images are not there. Missing strangers are no error; the page says which are missing.
        ValueError: if `out` is something else than a report, or a name is not of a component.
    """
    out = out or run.path / "report"
    _require_report(out)
    device = device or torch.device("cpu")
    named = names_for_run(names, run) if names else {}
    say("reading the images and running the network over them")
    evidence = gather(run, sources, device, sample)
    figures = {**report_figures(evidence, sources, device), "component_names": named}
    say("drawing")
    with staged(out, replace=True) as stage:
        title = f"{run.name} / {run.path.name}"
        write_page(stage, title, run.recipe.description or run.name, sections_of(evidence, figures, images=images))
        (stage / FIGURES).write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return out / PAGE


def report_figures(evidence: Evidence, sources: Sources, device: torch.device) -> dict[str, Any]:
    """Every figure of a report, as plain values.

    Returns:
        run (see `run_facts`); log_density, the mean on the test split in nats, None without a density; calibration;
        confusion (C, C), confused_pairs and class_accuracy on the test split; class_distances in the features of
        training images; abstention (see `abstention_figures`); components, None for one a class; ood (see `ood_of`).
    """
    test, classes = evidence.test, len(evidence.dataset.classes)
    counts = confusion_counts(test.outputs["posterior"].argmax(1), test.labels, classes)
    density = test.outputs.get("log_density")
    say("calibration, confusions and distances of the classes")
    figures: dict[str, Any] = {
        "run": run_facts(evidence),
        "log_density": None if density is None else round(float(density.mean()), 4),
        "calibration": calibration_figures(evidence),
        "confusion": counts.tolist(),
        "confused_pairs": confused_pairs(counts, MOST_PAIRS),
        "class_accuracy": class_accuracy(counts),
        "class_distances": class_distances(evidence.train.features, evidence.train.labels, classes),
        "abstention": abstention_figures(evidence),
    }
    say("components: occupancy, repeatability, stability and BIC")
    figures["components"] = component_figures(evidence)
    say("strangers")
    figures["ood"] = ood_of(evidence, sources, device)
    return figures


def _require_report(out: Path) -> None:
    """Refuse to replace what is no report."""
    if out.exists() and not (out / FIGURES).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"out must be a new or empty folder or a report, got {out}, which holds something else")
