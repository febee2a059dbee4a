"""What a page is told of a model: its facts as JSON, with where an answer lies among the held-out images.

    facts(known)                              # labels, components, histogram of typicality, what is missing
    typicality_place(known.held_out, 0.41)    # where in that histogram

Typicality scores are drawn by how far they are below the greatest, logarithmically, for held-out images are crowded
near it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.console.context import Known
from serving.held_out import HeldOut
from serving.plane import Plane
from serving.respond import significant

BINS = 32
DIGITS = 4  # of a point in the plane
STANDARD_DEVIATIONS = 2.0  # half axes of a component's ellipse
SOFTENED = 0.05  # of the scores' quartile range: what is nearer to the greatest is crowded together

Facts = dict[str, Any]


def facts(known: Known) -> Facts:
    """The facts of a model that a page needs, for JSON."""
    manifest = known.manifest
    return {
        "labels": manifest.labels,
        "components": manifest.head.components if "responsibilities" in manifest.outputs else 0,
        "component_names": manifest.component_names,
        "head": manifest.head.kind,
        "dataset": manifest.dataset.name,
        "input": manifest.input.model_dump(),
        "max_bytes": known.limits.max_bytes,
        "held_out": None if known.held_out is None else _of_held_out(known.held_out),
        "means": [] if known.examples is None else sorted(known.examples.means),
        "nearest": []
        if known.examples is None
        else [[*at, len(n)] for at, n in sorted(known.examples.nearest.items())],
        "plane": None if known.plane is None else _of_plane(known.plane),
        "missing": list(_missing(known)),
    }


def typicality_place(held_out: HeldOut, typicality: float) -> float:
    """Where an image of some typicality lies in the drawn histogram: 0 at its left end, 1 at its right.

    Its score is not in the answer, but how many held-out images have none greater is.
    """
    drawn = np.sort(_drawn(held_out))
    at_most = round(typicality * (len(drawn) + 1)) - 1
    score = drawn[max(0, at_most - 1) : min(at_most + 1, len(drawn))].mean()
    return float((score - drawn[0]) / max(drawn[-1] - drawn[0], np.finfo(np.float64).tiny))


def _of_held_out(held_out: HeldOut) -> Facts:
    counts, _ = np.histogram(_drawn(held_out), BINS)
    return {
        "images": len(held_out),
        "most_coverage": held_out.most_coverage,
        "histogram": counts.tolist(),
    }


def _of_plane(plane: Plane) -> Facts:
    """Points with the positions of their classes, and the ellipses that hold a component's images.

    An ellipse has its centre, half axes and the angle of the longer one in radians, at STANDARD_DEVIATIONS.
    """
    ellipses = [
        {"label": int(c), "component": int(k), **_ellipse(plane.means[c, k], plane.covariances[c, k])}
        for c, k in np.argwhere(plane.weights > 0)
    ]
    return {"points": significant(plane.points, DIGITS).tolist(), "labels": plane.labels.tolist(), "ellipses": ellipses}


def _ellipse(mean: NDArray[np.floating], covariance: NDArray[np.floating]) -> Facts:
    variances, directions = np.linalg.eigh(covariance.astype(np.float64))  # ascending
    half_axes = STANDARD_DEVIATIONS * np.sqrt(np.maximum(variances[::-1], 0))
    angle = np.arctan2(directions[1, 1], directions[0, 1])
    return {"centre": mean.tolist(), "half_axes": half_axes.tolist(), "angle": float(angle)}


def _drawn(held_out: HeldOut) -> NDArray[np.float64]:
    """The typicality scores on the scale of the drawing, (n,), greater for more typical ones."""
    scores = held_out.typicality_scores.astype(np.float64)
    lower, upper = np.quantile(scores, (0.25, 0.75))
    below: NDArray[np.float64] = scores.max() - scores + max(SOFTENED * (upper - lower), np.finfo(np.float32).tiny)
    return -np.log(below)


def _missing(known: Known) -> list[str]:
    """What the model's bundle does not hold, a sentence each."""
    missing = []
    if known.held_out is None:
        missing.append("No images were held out from its training: it tells neither typicality nor prediction sets.")
    if "responsibilities" not in known.manifest.outputs:
        missing.append(f"Its head, {known.manifest.head.kind}, has no components.")
    elif known.examples is None:
        missing.append("It was exported without examples, so there are no pictures of its components.")
    if known.plane is None:
        missing.append("It was exported without a feature plane.")
    return missing
