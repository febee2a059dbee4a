"""Out-of-distribution detection: which score of one network tells images of its own kind from strangers.

    figures = ood_figures(run, Sources(root), torch.device("cpu"))
    figures["sets"]["cifar100"]["scores"]["energy"]["auroc"]
    figures["means"]["far"]["energy"]["auroc"]

The network's test split is mixed with one set of strangers after another: the test splits of data sets that are near to
its own and of others that are far (training/datasets.py), the latter turned upside down and inverted too, and drawn
images (training/strangers.py). All are made into what the network takes as a server does it. Each score
(familiarity.py) is measured by the area under the ROC curve, the area under the precision-recall curve of either kind,
and the share of strangers that are accepted at the threshold that accepts 95 % of the network's own kind.

Reference: Zhang et al. 2023, OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection, arXiv 2306.09301.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from serving.bundle import InputSpec
from serving.judgement import ATYPICAL_BELOW
from training.analysis.evidence import SAMPLE, Answers, Evidence, FloatArray, answers_of, gather
from training.analysis.familiarity import FamiliarityScores, FittedScores, fit_scores, omitted, scores_of
from training.data import DataError, Sources
from training.datasets import DATASETS, load_dataset
from training.image_files import in_memory
from training.intervals import auroc_interval
from training.recipe import DataSpec
from training.run import Run
from training.strangers import drawn, in_channels, inverted, upside_down

ACCEPTED = 0.95  # of the network's own kind
DRAWN_SETS = ("flat", "noise", "stripes", "checkerboard", "gradients", "text", "textures")
DRAWN_IMAGES, CHANGED_IMAGES = 200, 2_000  # of a set
SEED = 0
MEANS = ("auroc", "fpr_at_95_tpr")

Kind = Literal["near", "far"]


class StrangerSet(NamedTuple):
    """Strangers: their name, whether they are near or far, and what makes their images, uint8 (N, channels, H, W)."""

    name: str
    kind: Kind
    images: Callable[[], Tensor]


def ood_figures(run: Run, sources: Sources, device: torch.device, sample: int = SAMPLE) -> dict[str, Any]:
    """What `ood_of` says of a run's network.

    Raises:
        DataError: if the images of the run are not there.
        RunError: if the run is not finished or its images have changed.
    """
    return ood_of(gather(run, sources, device, sample), sources, device)


def ood_of(evidence: Evidence, sources: Sources, device: torch.device) -> dict[str, Any]:
    """How well every score tells every set of strangers, as plain values.

    Returns:
        known, the data set, and known_images; sets, by name kind, images, scores (see `separation`) and flagged, the
        share that is less typical than one in a hundred held-out images, None without such; means, by kind and score
        the mean AUROC and FPR of the sets; missing, by name why a set is not there; omitted, likewise of a score.
    """
    fitted = fit_scores(evidence)
    known = scores_of(evidence, evidence.test, fitted)
    sets, missing = {}, {}
    for name, kind, images in stranger_sets(evidence.run.recipe.data.name, evidence.dataset.input, sources):
        try:
            found = images()
        except DataError as exc:
            missing[name] = str(exc)
            continue
        answers = _answers(evidence, found, device)
        sets[name] = {"kind": kind, **_figures(evidence, known, answers, fitted, sampled=name not in DRAWN_SETS)}
    return {
        "known": evidence.dataset.name,
        "known_images": len(evidence.test.labels),
        "sets": sets,
        "means": {kind: means for kind in ("near", "far") if (means := _means(sets, kind))},
        "missing": missing,
        "omitted": omitted(evidence),
    }


def stranger_sets(dataset: str, spec: InputSpec, sources: Sources) -> Iterator[StrangerSet]:
    """The sets that are strange to a data set, near ones first; none is read before its images are asked for.

    Args:
        dataset: its name.
        spec: what the network takes. The images are of its channels, the drawn ones of its size too.
        sources: where data sets lie.
    """
    entry = DATASETS[dataset]

    def of(name: str) -> Tensor:
        return in_channels(_test_images(name, sources), spec.channels)

    def changed(name: str, change: Callable[[Tensor], Tensor]) -> Tensor:
        images = of(name)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
        return change(images[order[:CHANGED_IMAGES]])

    for name in entry.near:
        yield StrangerSet(name, "near", partial(of, name))
    for name in entry.far:
        yield StrangerSet(name, "far", partial(of, name))
        yield StrangerSet(f"{name}, upside down", "far", partial(changed, name, upside_down))
        yield StrangerSet(f"{name}, inverted", "far", partial(changed, name, inverted))
    for name in DRAWN_SETS:
        yield StrangerSet(name, "far", partial(drawn, name, spec, DRAWN_IMAGES, SEED))


def separation(known: FloatArray, strangers: FloatArray, *, sampled: bool = True) -> dict[str, Any]:
    """How well a score, higher for the known, tells known (N,) from strangers (M,).

    Returns:
        auroc; auroc_interval, 95 % over images of both kinds, None for strangers that are no sample of any; aupr_known
        and aupr_strangers, the average precision of finding either, which depends on how many there are of both; and
        fpr_at_95_tpr.

    Raises:
        ValueError: if a score is no finite number.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = np.concatenate([known, strangers])
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, got {scores[~np.isfinite(scores)][0]}")
    truth = np.repeat([1, 0], [len(known), len(strangers)])
    return {
        "auroc": round(float(roc_auc_score(truth, scores)), 6),
        "auroc_interval": auroc_interval(known, strangers) if sampled else None,
        "aupr_known": round(float(average_precision_score(truth, scores)), 6),
        "aupr_strangers": round(float(average_precision_score(1 - truth, -scores)), 6),
        "fpr_at_95_tpr": round(false_positive_rate(known, strangers), 6),
    }


def false_positive_rate(known: FloatArray, strangers: FloatArray, accepted: float = ACCEPTED) -> float:
    """Share of strangers at or above the highest threshold that at least `accepted` of the known reach."""
    needed = math.ceil(accepted * len(known) - 1e-9)
    threshold = np.sort(known)[len(known) - needed]
    return float((strangers >= threshold).mean())


def _test_images(name: str, sources: Sources) -> Tensor:
    """The test images of a data set."""
    dataset = load_dataset(DataSpec(name=name), sources)
    return in_memory(dataset.images[torch.arange(dataset.test_start or 0, len(dataset.labels))])


def _answers(evidence: Evidence, images: Tensor, device: torch.device) -> Answers:
    nobodys = torch.zeros(len(images), dtype=torch.int64)
    return answers_of(evidence.classifier, images, nobodys, evidence.dataset.input, device)


def _figures(
    evidence: Evidence, known: FamiliarityScores, answers: Answers, fitted: FittedScores, *, sampled: bool
) -> dict[str, Any]:
    """Images, scores and flagged of one set."""
    scores, held_out = scores_of(evidence, answers, fitted), evidence.held_out
    flagged = None
    if held_out is not None:
        typicality = held_out.typicality(answers.outputs["typicality_score"])
        flagged = round(float((typicality < ATYPICAL_BELOW).mean()), 6)
    separated = {name: separation(known[name], scores[name], sampled=sampled) for name in known}
    return {"images": len(answers.labels), "scores": separated, "flagged": flagged}


def _means(sets: dict[str, Any], kind: str) -> dict[str, Any]:
    """By score the mean of its figures over the sets of a kind; nothing if there are none."""
    of_kind = [one["scores"] for one in sets.values() if one["kind"] == kind]
    if not of_kind:
        return {}
    return {
        name: {key: round(float(np.mean([scores[name][key] for scores in of_kind])), 6) for key in MEANS}
        for name in of_kind[0]
    }
