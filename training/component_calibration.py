"""Calibration of responsibilities: one temperature, so that a component's probability is the chance that it holds.

A responsibility p(k|c, z) takes the fitted Gaussians for certain. They are not: EM on other images of the same kind
finds others, and shares images out in another way. So p(k|c, z) is to be the chance that such a refit would put the
image into component k, and it is softmax over k of (component log-joints / T), with one T for all classes. It does not
change which component an image belongs to, and neither posterior nor log-density.

Bootstrap samples stand for other images. Of each ordered pair of refits the first plays the model, the second the refit
on other images; images that are in neither sample play those that are yet to come, for of an image that it was fitted
to a mixture is too sure, most of all where images are few and features many. Components of the second are matched with
those of the first by the images of the class that they share. Principal components and everything before them stay as
they are.

T has the least Brier score, plus `PRIOR_ERRORS` |log T|, which keeps it at 1 where refits never differ. Likelihood, to
which the temperature of the posterior is fitted, would not do: now and then a refit shares out a whole class in another
way, however sure the first one was, and for the sake of these images likelihood makes all others too unsure. The Brier
score is proper too, and counts no image for more than two.

References: Efron & Tibshirani 1993, An Introduction to the Bootstrap; Hennig 2007, Cluster-Wise Assessment of Cluster
Stability, Comput. Stat. Data Anal. 52; Guo et al. 2017, On Calibration of Modern Neural Networks, ICML; Gneiting &
Raftery 2007, Strictly Proper Scoring Rules, Prediction, and Estimation, JASA 102.
"""

from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from training.calibration_error import calibration_error, confidences, equal_mass_bins, equal_width_bins
from training.classifier import Classifier
from training.components import Labels, Positions, bootstrap, matching, of_own_class
from training.covariances import FloatArray
from training.principal import Rows
from training.progress import track
from training.refit import fit_head
from training.refit_spec import RefitSpec
from training.splits import stratified_order

REFITS = 5
MOST_IMAGES = 20_000  # of more, a sample in which every class has its share
FEWEST_A_COMPONENT = 5  # images of every class; of fewer, a bootstrap sample may hold too few different ones
SURE = 0.999
PRIOR_ERRORS = 1.0  # squared errors, summed, that a factor of e must bring
SEARCHED = np.linspace(-4.0, 8.0, 25)  # of log T; the score may have several minima
DIGITS = 6  # significant ones of T

Figures = dict[str, Any]


class Matched(NamedTuple):
    """What pairs of refits say of images that neither was fitted to; an image is there once for each such pair.

    Attributes:
        log_joints: of the first refit's components of the image's own class, float64 (M, K).
        labels: the first one's component that matches the one that the second puts the image into, int64 (M,).
        images: how many different ones there are.
    """

    log_joints: Tensor
    labels: Tensor
    images: int


def calibrate_components(
    classifier: Classifier, spec: RefitSpec, images: Tensor | Rows, labels: Tensor, seed: int
) -> None:
    """Give `classifier` the temperature of its responsibilities, and say how it was come by.

    Args:
        classifier: a refitted one, with several components a class.
        spec: how it was refitted; nothing of it is left open but the number of components.
        images: those that it was refitted on: uint8 (N, channels, H, W), or the trunk's features of them.
        labels: int64 (N,).
        seed: of the samples and of the EM's starts.
    """
    head, truth = classifier.head, labels.cpu()
    fewest = int(truth.bincount(minlength=head.classes).min())
    if fewest < FEWEST_A_COMPONENT * head.components:
        why = f"a class has {fewest} images, too few for refits with {head.components} components"
        classifier.component_calibration = {"why": why}
        return
    chosen = stratified_order(truth, seed)[:MOST_IMAGES].sort().values.numpy()
    features = features_of(classifier, images, chosen)
    projection = classifier.encoder.projection
    pooled = projection.in_features if spec.dim is not None and isinstance(projection, nn.Linear) else None
    known = spec.model_copy(update={"head": "mda", "components": head.components})
    judged = judged_by_refits(features, truth.numpy()[chosen], known, seed, pooled)
    classifier.component_temperature = fit_component_temperature(judged)
    classifier.component_calibration = _figures(judged, classifier.component_temperature)


def judged_by_refits(
    features: FloatArray, labels: Labels, spec: RefitSpec, seed: int, pooled: int | None = None
) -> Matched:
    """Refit bootstrap samples and compare every pair of refits on the images that are in neither sample.

    Args:
        features: (N, D).
        labels: (N,), of all classes.
        spec: how each is fitted, with its number of components.
        seed: of the samples and of the EM's starts.
        pooled: P, as for `refit.fit_head`.
    """
    classes, everything = 1 + int(labels.max()), np.arange(len(labels))
    samples = [bootstrap(labels, np.random.default_rng((seed, number))) for number in range(REFITS)]
    heads = [
        fit_head(features[drawn], labels[drawn], classes, spec, seed, pooled)
        for drawn in track(samples, "components: refits of bootstrap samples")
    ]
    joints = [of_own_class(head, features, labels) for head in heads]
    unseen = [~np.isin(everything, drawn) for drawn in samples]
    log_joints, components, at = [], [], []
    for first, second in permutations(range(REFITS), 2):
        of_neither = np.flatnonzero(unseen[first] & unseen[second])
        log_joints.append(joints[first][of_neither])
        components.append(as_first(joints[first].argmax(1), joints[second].argmax(1), labels)[of_neither])
        at.append(of_neither)
    different = len(np.unique(np.concatenate(at)))
    return Matched(
        torch.from_numpy(np.concatenate(log_joints)), torch.from_numpy(np.concatenate(components)), different
    )


def as_first(first: Positions, second: Positions, labels: Labels) -> Positions:
    """The components that a second refit puts images into, (N,), called as a first one calls them.

    Args:
        first: the components by the first refit, (N,).
        second: by the second one, (N,).
        labels: the images' classes, (N,).
    """
    components, renamed = 1 + int(max(first.max(), second.max())), np.empty_like(second)
    for label in np.unique(labels):
        own = labels == label
        renamed[own] = matching(first[own], second[own], components)[second[own]]
    return renamed


def fit_component_temperature(judged: Matched) -> float:
    """The temperature with the least Brier score under the prior, from e^-4.5 to e^8.5; 1 for no images."""
    from scipy.optimize import minimize_scalar

    def cost(log_temperature: float) -> float:
        return float(_squared_errors(judged, float(np.exp(log_temperature))).sum()) + PRIOR_ERRORS * abs(
            log_temperature
        )

    nearest, width = min(SEARCHED, key=cost), SEARCHED[1] - SEARCHED[0]
    bounds = (nearest - width, nearest + width)
    found = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x
    return float(f"{np.exp(min(0.0, found, key=cost)):.{DIGITS}g}")


def reliability_at(judged: Matched, temperature: float) -> Figures:
    """How well the probability of the likeliest component is the share of refits that agree.

    Returns:
        nll in nats; brier, the squared error summed over components; ece over 15 bins of equal width, ece_equal_mass
        over 15 of equal mass; sure, the share of images whose likeliest component has a probability above 0.999.
    """
    log_shares = (judged.log_joints / temperature).log_softmax(1)
    confidence, right = confidences(log_shares.exp().numpy(), judged.labels.numpy())
    return {
        "nll": round(-log_shares.gather(1, judged.labels[:, None]).mean().item(), 6),
        "brier": round(_squared_errors(judged, temperature).mean().item(), 6),
        "ece": round(calibration_error(confidence, right, equal_width_bins(confidence)), 6),
        "ece_equal_mass": round(calibration_error(confidence, right, equal_mass_bins(confidence)), 6),
        "sure": round(float((confidence > SURE).mean()), 6),
    }


@torch.no_grad()
def features_of(classifier: Classifier, images: Tensor | Rows, chosen: Positions) -> FloatArray:
    """What the head sees of some images, (n, D)."""
    classifier.eval()
    if isinstance(images, Rows):
        project, device = classifier.encoder.projection, classifier.mean.device
        batches = (torch.from_numpy(batch).float().to(device) for batch in images.at(chosen).batches())
        parts = [project(batch) for batch in batches]
    else:
        parts = [
            classifier.encoder(classifier.normalise(batch)) for batch in images[torch.from_numpy(chosen)].split(512)
        ]
    features: FloatArray = torch.cat(parts).double().cpu().numpy()
    return features


def _squared_errors(judged: Matched, temperature: float) -> Tensor:
    """Squared error of each image's component probabilities, summed over the components, (M,)."""
    shares = (judged.log_joints / temperature).softmax(1)
    right = shares.gather(1, judged.labels[:, None])[:, 0]
    return shares.square().sum(1) - 2 * right + 1


def _figures(judged: Matched, temperature: float) -> Figures:
    before, after = (reliability_at(judged, at) for at in (1.0, temperature))
    agreement = (judged.log_joints.argmax(1) == judged.labels).double().mean().item()
    why = (
        f"fitted on {judged.images:,} images that pairs of {REFITS} bootstrap refits have not seen, which agree on "
        f"{agreement:.1%} of them: ECE from {before['ece']:.2%} to {after['ece']:.2%}"
    )
    return {
        "why": why,
        "refits": REFITS,
        "images": judged.images,
        "comparisons": len(judged.labels),
        "agreement": round(agreement, 6),
        "before": before,
        "after": after,
    }
