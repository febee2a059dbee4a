"""Which component of its own class an image belongs to, under one fitted head or another.

    belongs = assignments(fit_head(features, labels, 10, spec, seed=0), features, labels)    # (N,)
    of_first = matching(belongs_by_first, belongs_by_second, components)                     # (K,)

Components have no order: what one fit calls component 0 another may call 2. `matching` tells by the images.

References: Kuhn 1955, The Hungarian Method for the Assignment Problem, Naval Res. Logist. Quart. 2; Efron & Tibshirani
1993, An Introduction to the Bootstrap.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from training.covariances import FloatArray
from training.gaussians import gaussian_log_density
from training.heads import DiscriminantHead

Labels = NDArray[np.int64]
Positions = NDArray[np.int64]


@torch.no_grad()
def of_class(head: DiscriminantHead, points: FloatArray, label: int) -> FloatArray:
    """Score log p(k|c) + log N(z; mu_ck, Sigma_ck) of points (n, D) under one class's components, in nats, (n, K)."""
    whitening, half_log_det = head.gaussians.whitening()
    own = slice(label * head.components, (label + 1) * head.components)
    shared = slice(None) if len(whitening) == 1 else own
    parts = (head.gaussians.means[own], whitening[shared], half_log_det[shared])
    points_and_parts = torch.from_numpy(points), *(part.double() for part in parts)
    density = gaussian_log_density(*points_and_parts, shared=head.gaussians.shared)
    joint = head.weight_logits[label].double().log_softmax(0) + density + head.log_density_constant
    return joint.numpy()


def of_own_class(head: DiscriminantHead, features: FloatArray, labels: Labels) -> FloatArray:
    """`of_class` of every image under the components of its own class: features (N, D) and labels (N,) to (N, K)."""
    joints = np.empty((len(labels), head.components))
    for label in range(head.classes):
        joints[labels == label] = of_class(head, features[labels == label], label)
    return joints


def assignments(head: DiscriminantHead, features: FloatArray, labels: Labels) -> Positions:
    """The component, of an image's own class, that an image belongs to: (N,)."""
    belongs: Positions = of_own_class(head, features, labels).argmax(1)
    return belongs


def matching(first: Positions, second: Positions, components: int) -> Positions:
    """For each component of a second fit the one of a first fit that it is: the pairs that share most images in all.

    Args:
        first: which component an image of a class belongs to by the first fit, (n,).
        second: by the second one, (n,).
        components: K.

    Returns:
        (K,), a permutation.
    """
    from scipy.optimize import linear_sum_assignment

    shared = np.bincount(second * components + first, minlength=components**2).reshape(components, components)
    of_first: Positions = linear_sum_assignment(shared, maximize=True)[1]
    return of_first


def bootstrap(labels: Labels, generator: np.random.Generator) -> Positions:
    """Positions drawn with replacement, of each class as many as it has."""
    members = (np.flatnonzero(labels == label) for label in np.unique(labels))
    return np.concatenate([generator.choice(of_one, len(of_one)) for of_one in members])
