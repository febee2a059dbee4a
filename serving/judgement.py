"""Judgement: what a model's held-out images say of its answers, as each request asks for it.

    check_options(options, manifest, held_out)                             # before anything is decoded
    posterior = under_priors(outputs["posterior"], manifest, options)
    sets = prediction_sets(outputs["posterior"], posterior, manifest.labels, options, held_out)
    words = flags(probability, typicality, options[0], held_out)

What is asked for by none of the images of a batch is not computed.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Manifest
from serving.errors import BadParameter, shown
from serving.held_out import HeldOut
from serving.parameters import Options

ATYPICAL_BELOW = 0.01  # the typicality of an image that is called atypical, unless a request says otherwise
FLAGS = ("atypical", "typicality_too_coarse", "uncertain")


def check_options(options: Options, manifest: Manifest, held_out: HeldOut | None) -> None:
    """Refuse what a model cannot tell.

    Args:
        options: of a request.
        manifest: of the model's bundle.
        held_out: its held-out images, if it has any.

    Raises:
        BadParameter: which says what the model lacks.
    """
    if held_out is None:
        _check_needs_none(options, manifest.name)
    elif options.coverage is not None:
        held_out.thresholds(options.coverage)
    if options.priors is None:
        return
    _check_priors(options.priors, manifest)
    if held_out is not None and options.coverage is not None and not held_out.is_class_conditional:
        raise BadParameter(
            f"coverage must be left out beside priors, as {manifest.name} has too few held-out images of each class "
            f"for sets that hold under other shares, got {options.coverage}"
        )


def _check_needs_none(options: Options, name: str) -> None:
    accepted = None if options.accept is None else options.accept.typicality
    asked = {"coverage": options.coverage, "atypical_below": options.atypical_below, "accept.typicality": accepted}
    for parameter, value in asked.items():
        if value is not None:
            raise BadParameter(
                f"{parameter} must be left out, as {name} has no held-out images to tell by, got {value}: export it "
                "anew from a recipe that holds images out ([calibration] share)"
            )


def _check_priors(priors: Sequence[tuple[str, float]], manifest: Manifest) -> None:
    if manifest.priors is None:
        raise BadParameter(
            f"priors must be left out, as {manifest.name} does not say those of its training images, got some: export "
            "it anew"
        )
    given = {label for label, _ in priors}
    if unknown := sorted(given - set(manifest.labels)):
        raise BadParameter(f"priors must be of the labels of {manifest.name}, got {shown(unknown[0])} too")
    if missing := [label for label in manifest.labels if label not in given]:
        raise BadParameter(
            f"priors must be of all labels of {manifest.name}, got none of {shown(missing[0])}: give a class that is "
            "hardly there a small share"
        )


def under_priors(
    posterior: NDArray[np.floating], manifest: Manifest, options: Sequence[Options]
) -> NDArray[np.floating]:
    """The posterior under the shares of the classes that requests name: p'(c | x) ~ p(c | x) p'(c) / p(c).

    Args:
        posterior: (N, C), under the shares among the training images.
        manifest: of the bundle that computed it.
        options: of each image.

    Returns:
        (N, C); the same array if no request names any.

    Reference: Saerens, Latinne & Decaestecker 2002, Adjusting the Outputs of a Classifier to New a Priori
    Probabilities, Neural Computation 14.
    """
    if not any(one.priors for one in options):
        return posterior
    moved: NDArray[np.floating] = posterior.astype(np.float64)
    for priors, rows in _rows_by("priors", options):
        shares = dict(priors)
        weights = np.array([shares[label] for label in manifest.labels]) / np.array(manifest.priors)
        moved[rows] *= weights
        moved[rows] /= moved[rows].sum(1, keepdims=True)
    return moved.astype(posterior.dtype)


def prediction_sets(
    posterior: NDArray[np.floating],
    answered: NDArray[np.floating],
    labels: Sequence[str],
    options: Sequence[Options],
    held_out: HeldOut | None,
) -> dict[int, list[str]]:
    """The labels that are possible, of each image that a coverage is asked for.

    Args:
        posterior: (N, C), as the graph answers it, which is what the held-out images are of.
        answered: (N, C), under the shares that requests name. It ranks a set, and its likeliest label is in it.
        labels: the C names.
        options: of each image.
        held_out: the model's held-out images; whoever asks for a coverage has had it checked.

    Returns:
        The labels by the image's place, the likeliest first.
    """
    sets: dict[int, list[str]] = {}
    if held_out is None:
        return sets
    for coverage, rows in _rows_by("coverage", options):
        possible = held_out.possible(posterior[rows], coverage)
        ranked = np.argsort(-answered[rows], axis=1, kind="stable")
        possible[np.arange(len(rows)), ranked[:, 0]] = True
        for n, is_in, best in zip(rows, possible, ranked, strict=True):
            sets[n] = [labels[c] for c in best[is_in[best]].tolist()]
    return sets


def flags(probability: float, typicality: float | None, options: Options, held_out: HeldOut | None) -> list[str]:
    """What a person should know before acting on an answer, out of FLAGS, sorted.

    Args:
        probability: of its label.
        typicality: of its image; None without held-out images.
        options: of its request.
        held_out: the model's held-out images.
    """
    found = []
    if held_out is not None and typicality is not None:
        below = ATYPICAL_BELOW if options.atypical_below is None else options.atypical_below
        if typicality < below:
            found.append("atypical")
        elif 0 < below <= held_out.least_typicality:
            found.append("typicality_too_coarse")
    accept = options.accept
    if accept is not None and (_is_below(probability, accept.probability) or _is_below(typicality, accept.typicality)):
        found.append("uncertain")
    return found


def _is_below(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value < bound


def _rows_by(name: str, options: Sequence[Options]) -> Iterator[tuple[Any, list[int]]]:
    """The places of the images that ask for each value of an option; those that ask for none are left out."""
    rows: dict[Any, list[int]] = {}
    for n, one in enumerate(options):
        value = getattr(one, name)
        if value is not None:
            rows.setdefault(value, []).append(n)
    yield from rows.items()
