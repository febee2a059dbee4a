"""What the components of a mixture head are worth: how evenly they are used, and whether a refit finds them anew.

    figures = component_figures(gather(run, sources, device))

`occupancy` is the share of a class's test images per component. Its entropy, over log K, is 1 where all components are
used alike and 0 where one takes every image. How the images of a class are shared out is compared by the adjusted Rand
index, 1 for the same groups and 0 for what chance would give: `repeatability` between refits from other starts of the
EM, `stability` between refits of bootstrap samples of the images. `bic` is the Bayesian information criterion of the
refitted mixtures per number of components, summed over the classes.

A head that was trained by gradient is compared with a refit of as many components on the same features.

References: Hubert & Arabie 1985, Comparing Partitions, J. Classification 2; Hennig 2007, Cluster-Wise Assessment of
Cluster Stability, Comput. Stat. Data Anal. 52; Schwarz 1978, Estimating the Dimension of a Model, Ann. Statist. 6.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.analysis.evidence import Evidence, FloatArray, Labels, log_joints_of_features
from training.components import assignments, bootstrap, of_class
from training.evaluate import occupancy_of
from training.heads import DiscriminantHead
from training.progress import track
from training.refit import fit_head
from training.refit_spec import RefitSpec

SEEDS, BOOTSTRAP_SAMPLES = (0, 1, 2), 5


def component_figures(evidence: Evidence) -> dict[str, Any] | None:
    """Every figure of a mixture head, as plain values; None if a class has one component.

    Returns:
        components; covariance; fitted_by (`em` or `gradient`); images, how many the statistics of refits are from; test
        (see `usage`); repeatability; stability; bic; calibration, how the temperature of responsibilities was come by,
        if the recipe wants one; and for a head trained by gradient `refit`, what EM makes of the
        same features.

    Raises:
        ValueError: if a class has too few images in the sample for a refit.
    """
    head = evidence.classifier.head
    if not isinstance(head, DiscriminantHead) or head.components == 1:
        return None
    spec = refit_spec(head, evidence.run.recipe.refit)
    features, labels = evidence.train.features, evidence.train.labels
    figures: dict[str, Any] = {
        "components": head.components,
        "covariance": spec.covariance,
        "fitted_by": "gradient" if evidence.run.recipe.refit is None else "em",
        "images": len(labels),
        "test": usage(evidence.test.outputs["responsibilities"], evidence.test.labels),
        "repeatability": repeatability(features, labels, head.classes, spec),
        "stability": stability(features, labels, head.classes, spec, evidence.run.recipe.seed),
        "bic": bic_by_components(features, labels, head.classes, spec, evidence.run.recipe.seed),
    }
    if known := evidence.classifier.component_calibration:
        figures["calibration"] = {"temperature": evidence.classifier.component_temperature, **known}
    if figures["fitted_by"] == "gradient":
        figures["refit"] = compare_with_refit(evidence, spec)
    return figures


def refit_spec(head: DiscriminantHead, spec: RefitSpec | None) -> RefitSpec:
    """How to refit `head` on its own features: as its recipe says, or by EM with its own covariance."""
    own = {"components": head.components, "features": "output", "dim": None}
    if spec is not None:
        shrinkage = "ledoit-wolf" if spec.shrinkage == "cross-fit" else spec.shrinkage
        return spec.model_copy(update={**own, "head": "mda", "shrinkage": shrinkage})
    return RefitSpec(features="output", covariance=head.gaussians.covariance, components=head.components)


def usage(responsibilities: NDArray[Any], labels: Labels) -> dict[str, Any]:
    """How evenly each class's images use its components.

    Args:
        responsibilities: (N, C, K).
        labels: (N,).

    Returns:
        occupancy (C, K), shares; entropy (C,) in nats; normalised_entropy (C,), over log K; and its mean over classes.
    """
    occupancy = occupancy_of(responsibilities, labels)
    entropy = entropy_of(occupancy)
    normalised = entropy / np.log(occupancy.shape[1])
    return {
        "occupancy": occupancy.round(4).tolist(),
        "entropy": entropy.round(4).tolist(),
        "normalised_entropy": normalised.round(4).tolist(),
        "mean_normalised_entropy": round(float(normalised.mean()), 4),
    }


def entropy_of(shares: FloatArray) -> FloatArray:
    """Entropy in nats of each row of shares (C, K); (C,)."""
    logs = np.log(np.where(shares > 0, shares, 1))
    entropy: FloatArray = np.abs((shares * logs).sum(1))  # the logs are at most 0
    return entropy


def repeatability(
    features: FloatArray, labels: Labels, classes: int, spec: RefitSpec, seeds: tuple[int, ...] = SEEDS
) -> dict[str, Any]:
    """Refit the same features from other starts of the EM and compare how each class's images are shared out.

    Returns:
        seeds, of the starts; and the keys of `_agreement`.
    """
    heads = [fit_head(features, labels, classes, spec, seed) for seed in track(seeds, "repeatability over EM starts")]
    return {"seeds": list(seeds), **_agreement(heads, features, labels)}


def stability(
    features: FloatArray, labels: Labels, classes: int, spec: RefitSpec, seed: int, samples: int = BOOTSTRAP_SAMPLES
) -> dict[str, Any]:
    """Refit bootstrap samples and compare how each class's images, all of them, are shared out.

    A sample draws as many images of each class as there are, with replacement; every EM starts from the same seed.

    Returns:
        bootstrap_samples; and the keys of `_agreement`.
    """
    heads = []
    for number in track(range(samples), "stability over bootstrap samples"):
        drawn = bootstrap(labels, np.random.default_rng((seed, number)))
        heads.append(fit_head(features[drawn], labels[drawn], classes, spec, seed))
    return {"bootstrap_samples": samples, **_agreement(heads, features, labels)}


def bic_by_components(features: FloatArray, labels: Labels, classes: int, spec: RefitSpec, seed: int) -> dict[str, Any]:
    """The information criterion of the refitted mixtures, summed over classes, for K = 1 to `spec.max_components`.

    Returns:
        components, the numbers tried; value, their criteria in nats; least, the number with the least.
    """
    fewest = int(np.bincount(labels, minlength=classes).min())
    tried = range(1, min(spec.max_components + 1, fewest))
    values = []
    for components in track(tried, "BIC"):
        head = fit_head(features, labels, classes, spec.model_copy(update={"components": components}), seed)
        values.append(sum(_bic_of_class(head, features[labels == c], c) for c in range(classes)))
    return {
        "components": list(tried),
        "value": [round(value, 1) for value in values],
        "least": tried[int(np.argmin(values))],
    }


def compare_with_refit(evidence: Evidence, spec: RefitSpec) -> dict[str, Any]:
    """What EM makes of the features of a head that was trained by gradient.

    Returns:
        accuracy_as_trained and accuracy (of the refit) on the test split; `usage` of the refit's components there.
    """
    train, test = evidence.train, evidence.test
    refitted = fit_head(train.features, train.labels, evidence.classifier.head.classes, spec, evidence.run.recipe.seed)
    scores, responsibilities = _scores(refitted, test.features)
    trained = log_joints_of_features(evidence.classifier, test.features)
    return {
        "accuracy_as_trained": round(float((trained.argmax(1) == test.labels).mean()), 6),
        "accuracy": round(float((scores.argmax(1) == test.labels).mean()), 6),
        **usage(responsibilities, test.labels),
    }


def _agreement(heads: Sequence[DiscriminantHead], features: FloatArray, labels: Labels) -> dict[str, Any]:
    """How alike heads share out each class's images.

    Returns:
        adjusted_rand_per_class (C,), the mean over the pairs of heads; adjusted_rand, the mean over classes.
    """
    from sklearn.metrics import adjusted_rand_score

    assigned = [assignments(head, features, labels) for head in heads]
    per_class = [
        np.mean([adjusted_rand_score(a[labels == c], b[labels == c]) for a, b in combinations(assigned, 2)])
        for c in range(heads[0].classes)
    ]
    return {
        "adjusted_rand_per_class": [round(float(score), 4) for score in per_class],
        "adjusted_rand": round(float(np.mean(per_class)), 4),
    }


def _bic_of_class(head: DiscriminantHead, points: FloatArray, label: int) -> float:
    log_density = np.logaddexp.reduce(of_class(head, points, label), axis=1)
    of_covariance = {"spherical": 1, "diagonal": head.dim, "full": head.dim * (head.dim + 1) // 2}
    free = head.components * (1 + head.dim + of_covariance[head.gaussians.covariance]) - 1
    return float(-2 * log_density.sum() + free * np.log(len(points)))


@torch.no_grad()
def _scores(head: DiscriminantHead, features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Log-joints (N, C) and responsibilities (N, C, K), a batch at a time."""
    scores = [head(batch).component_log_joints for batch in torch.from_numpy(features).float().split(256)]
    joints = torch.cat([score for score in scores if score is not None]).double()
    return joints.logsumexp(2).numpy(), joints.softmax(2).numpy()
