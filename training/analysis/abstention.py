"""When a network should leave an image to a person: its risk against coverage, its sets of labels, its thresholds.

    abstention_figures(gather(run, sources, device))
    thresholds_of(run, sources, device, error=0.01)

The formulas are in training/selective.py and training/prediction_sets.py.
"""

from typing import Any

import numpy as np
import torch

from serving.judgement import ATYPICAL_BELOW
from training.analysis.evidence import Answers, Evidence, FloatArray, answers_of
from training.calibration_error import confidences
from training.data import Sources
from training.images import images_of
from training.intervals import accuracy_interval
from training.prediction_sets import set_figures
from training.run import Run, RunError
from training.selective import (
    CONFIDENCE,
    Graded,
    Thresholds,
    aurc,
    best_aurc,
    excess_aurc,
    find_thresholds,
    own_typicality,
    risks,
    typicality_among,
)

POINTS = 200  # of a curve
SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)  # of the images that are answered
BINS = 20  # of p-values
FLAGGED_BELOW = (0.01, 0.05)
PILOT = 0.2  # of the held-out images, where none are kept for calibration


def thresholds_of(
    run: Run,
    sources: Sources,
    device: torch.device,
    error: float,
    confidence: float = CONFIDENCE,
    typicality: float = ATYPICAL_BELOW,
) -> Thresholds:
    """From where on a finished run's answers hold an error, by its held-out images; see `find_thresholds`.

    The pilot are the images that the temperature was fitted to, or a fifth of the held-out ones, by the recipe's seed,
    if there are no such images.

    Raises:
        RunError: if the run is not finished, has held no images out, or its images are others now.
        DataError: if its images are not there.
        ValueError: if a share is none.
    """
    if "held_out" not in (splits := run.splits()):
        raise RunError(
            f"run must hold images out, got {run.path} with the splits {', '.join(splits)}: train it anew from a "
            "recipe that does ([calibration] share)"
        )
    answers = _answers(run, "held_out", sources, device)
    scores = answers.outputs.get("typicality_score")
    held_out = _judged(answers, None if scores is None else own_typicality(scores))
    if "calibration" in splits:
        others = _answers(run, "calibration", sources, device)
        among = None if scores is None else typicality_among(scores, others.outputs["typicality_score"])
        return find_thresholds(_judged(others, among), held_out, error, confidence, typicality)
    order = np.random.default_rng(run.recipe.seed).permutation(len(answers.labels))
    cut = round(PILOT * len(order))
    return find_thresholds(held_out.at(order[:cut]), held_out.at(order[cut:]), error, confidence, typicality)


def abstention_figures(evidence: Evidence) -> dict[str, Any]:
    """What the test split says of abstaining, as plain values.

    Returns:
        images; error; aurc; e_aurc; best_aurc, what is left of the former without the latter; curve, coverage and risk;
        at, the risk at some coverages; and sets (see `set_figures`), groups, of classes within which their coverage
        holds, and typicality (see `typicality_figures`), all None without held-out images.
    """
    outputs, labels, held_out = evidence.test.outputs, evidence.test.labels, evidence.held_out
    confidence, right = confidences(outputs["posterior"], labels)
    risk, error = risks(confidence, right), float((~right).mean())
    figures: dict[str, Any] = {
        "images": len(labels),
        "error": round(error, 6),
        "aurc": round(aurc(confidence, right), 6),
        "e_aurc": round(excess_aurc(confidence, right), 6),
        "best_aurc": round(best_aurc(error), 6),
        "curve": _curve(risk),
        "at": {str(share): _risk_at(risk, share) for share in SHARES},
        "sets": None,
        "groups": None,
        "typicality": None,
    }
    if held_out is not None:
        figures["sets"] = set_figures(outputs["posterior"], labels, held_out)
        figures["groups"] = 1 + int(held_out.groups.max())
        figures["typicality"] = typicality_figures(held_out.typicality(outputs["typicality_score"]), len(held_out))
    return figures


def typicality_figures(p_values: FloatArray, held_out: int) -> dict[str, Any]:
    """How the p-values of N images lie, which are uniform for images like the n held-out ones.

    A p-value is one of n + 1, all as likely. A bin takes as many of these as the others, or one more; the images in it
    are then a beta-binomial number, over the draw of both the images and the held-out ones.

    Returns:
        images; held_out; edges of the bins, the first 0; count in each; low and high, between which 95 % of such counts
        lie; below, the share under some p-values with its 95 % interval.
    """
    from scipy.stats import betabinom

    bins = min(BINS, held_out + 1)
    ends = np.arange(1, bins + 1) * (held_out + 1) // bins  # the number of p-values up to the end of each bin
    ranks = np.rint(p_values * (held_out + 1)).astype(np.int64)  # from 1
    count = np.bincount(np.searchsorted(ends, ranks), minlength=bins)
    values = np.diff(ends, prepend=0)
    expected = betabinom(len(p_values), values, held_out + 1 - values)
    return {
        "images": len(p_values),
        "held_out": held_out,
        "edges": [0.0, *(ends / (held_out + 1)).round(6).tolist()],
        "count": count.tolist(),
        "low": expected.ppf(0.025).astype(int).tolist(),
        "high": expected.ppf(0.975).astype(int).tolist(),
        "below": {str(p): _share_below(p_values, p) for p in FLAGGED_BELOW},
    }


def _curve(risk: FloatArray) -> dict[str, list[float]]:
    """Coverage and risk at so many points, the last of all images."""
    at = np.unique(np.linspace(0, len(risk) - 1, min(POINTS, len(risk))).round().astype(int))
    return {"coverage": ((at + 1) / len(risk)).round(6).tolist(), "risk": risk[at].round(6).tolist()}


def _risk_at(risk: FloatArray, share: float) -> float:
    return round(float(risk[max(0, round(share * len(risk)) - 1)]), 6)


def _share_below(p_values: FloatArray, p: float) -> dict[str, Any]:
    below = int((p_values < p).sum())
    return {"share": round(below / len(p_values), 6), "interval": accuracy_interval(below, len(p_values))}


def _answers(run: Run, split: str, sources: Sources, device: torch.device) -> Answers:
    images = images_of(run, sources)
    part = images.streamed(split)
    return answers_of(run.load_classifier(), part.images, part.labels, images.dataset.input, device)


def _judged(answers: Answers, typicality: FloatArray | None) -> Graded:
    _, right = confidences(answers.outputs["posterior"], answers.labels)
    return Graded(answers.outputs["posterior"].max(1), right, typicality)
