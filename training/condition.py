"""How far float32 moves a classifier's answers, worked out in float64 and so the same on every machine.

An encoder that computes in float32 rounds its features, and a steep head magnifies that. Each pooled feature is taken
to be off by `OF_FEATURES` times its size, independently of the others, and a projected one by the root of the summed
squares of what is added up to it. Moving one feature after the other by that much shows what it makes of the log-odds
of every class and component and of the log-density: the root of the summed squares. For the typicality the first
block's means and the pixels' contrast are moved too. The head's own rounding of log-joints comes on top. What the
log-odds' shift makes of a probability is its change over the whole shift, not a derivative, which is zero at a sure
answer however steep the head.

`OF_FEATURES` is 32 units of rounding, `OF_HEAD` 8. The graphs of 100 classifiers (digits with every covariance, ridges
of 0.1 to 1e-6, 16 to 256 pooled features; MNIST, Fashion-MNIST, CIFAR-100; photos on EfficientNet-Lite0) stayed below
half of these bounds, with AVX-512 and with AVX2 alone.

References: Higham 2002, Accuracy and Stability of Numerical Algorithms, ch. 1 and 3; Higham & Mary 2019, A New Approach
to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41 (errors of n roundings grow as the root of n).
"""

import torch
from torch import Tensor, nn

from training.classifier import Classifier
from training.heads import Head, Scores
from training.power import split_power
from training.typicality import Seen, Typicality

OF_FEATURES, OF_HEAD = 32 * 2.0**-24, 8 * 2.0**-24
AT_ONCE = 32  # features that are moved, each in a copy of the images


@torch.no_grad()
def condition(classifier: Classifier, images: Tensor) -> dict[str, Tensor]:
    """How far each of a classifier's answers may be off in float32, in the answers' own shapes and units.

    Args:
        classifier: in float64 and evaluation mode, on the CPU.
        images: uint8 (N, channels, H, W).
    """
    pooled, size = _pooled(classifier.encoder.trunk, classifier.normalise(images))
    features, error = _projected(classifier.encoder.projection, pooled, size)
    scores = classifier.head(features)
    moved = _moved_by(classifier.head, features, error)
    own = _own_rounding(scores)
    shift = {name: moved[name] + own[name] for name in moved}
    bounds = {"features": error}
    odds = log_odds(classifier.calibrated(scores.log_joints))
    bounds["posterior"] = _change(odds, shift["posterior"] / classifier.temperature)
    if scores.component_log_joints is not None:
        odds = log_odds(scores.component_log_joints / classifier.component_temperature)
        bounds["responsibilities"] = _change(odds, shift["responsibilities"] / classifier.component_temperature)
    if "log_density" in classifier.head.outputs:
        bounds["log_density"] = shift["log_density"]
    if classifier.typicality is not None:
        bounds["typicality_score"] = _of_typicality(classifier, classifier.inspect(images), OF_FEATURES * size)
    return bounds


def log_odds(log_joints: Tensor) -> Tensor:
    """Logarithm of p / (1 - p) of a softmax over the last dimension, (..., M); zeros if M = 1."""
    if log_joints.shape[-1] == 1:
        return torch.zeros_like(log_joints)
    return log_joints - _others(log_joints).logsumexp(-1)


def _projected(projection: nn.Module, pooled: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, D) and how far each may be off; no pooled feature counts as less than the mean of its image."""
    if isinstance(projection, nn.Linear):
        size = (size.square() @ projection.weight.square().T + projection.bias.square()).sqrt()
    return projection(pooled), OF_FEATURES * size


def _pooled(trunk: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features (N, P), and the size that their rounding is in proportion to.

    Square roots magnify the rounding of what they are of, the more the smaller that is.
    """
    network, power = split_power(trunk)
    before = network(images)
    if power is None:
        return before, _size(before)
    pooled = power(before)
    return pooled, _size(pooled) + power.slope(before) * _size(before)


def _size(features: Tensor) -> Tensor:
    return features.abs().maximum(features.square().mean(1, keepdim=True).sqrt())


def _moved_by(head: Head, features: Tensor, error: Tensor) -> dict[str, Tensor]:
    """What errors (N, D) of the features make of log-odds and log-density: each feature is moved, one at a time."""
    before = _quantities(head(features))
    squares = {name: torch.zeros_like(value) for name, value in before.items()}
    for chosen in torch.eye(features.shape[1], dtype=features.dtype).split(AT_ONCE):  # (d, D)
        moved = features[:, None] + error[:, None] * chosen  # (N, d, D)
        for name, after in _quantities(head(moved.flatten(0, 1))).items():
            change = after.unflatten(0, moved.shape[:2]) - before[name][:, None]
            squares[name] += change.square().sum(1)
    return {name: total.sqrt() for name, total in squares.items()}


def _of_typicality(classifier: Classifier, seen: Seen, error: Tensor) -> Tensor:
    """How far the typicality score may be off, (N,), if each pooled feature is by `error` (N, P); the others alike."""
    typicality, head, projection = classifier.typicality, classifier.head, classifier.encoder.projection
    assert typicality is not None

    def measured(moved: Tensor) -> tuple[Tensor, Tensor]:
        like = _apart(moved, seen)
        features = projection(like.pooled)
        return typicality.parts(like, features), classifier.calibrated(head(features).log_joints).softmax(1)

    parts = _together(seen)
    error = torch.cat([error, *(OF_FEATURES * _size(part) for part in parts[1:])], 1)
    together = torch.cat(parts, 1)  # (N, M)
    parts_before = measured(together)
    before, squares = typicality.score(*parts_before), torch.zeros(len(together), dtype=together.dtype)
    for chosen in torch.eye(together.shape[1], dtype=together.dtype).split(AT_ONCE):  # (d, M)
        moved = together[:, None] + error[:, None] * chosen  # (N, d, M)
        after = typicality.score(*measured(moved.flatten(0, 1))).unflatten(0, moved.shape[:2])
        squares += (after - before[:, None]).square().sum(1)
    return squares.sqrt() + _own_rounding_of(typicality, *parts_before)


def _own_rounding_of(typicality: Typicality, parts: Tensor, posterior: Tensor) -> Tensor:
    """What relative errors of its parts (N, K) make of a typicality score, all in the worst direction, (N,)."""
    before = typicality.score(parts, posterior)
    off = OF_HEAD * (1 + before.abs())
    for part in torch.eye(parts.shape[1], dtype=parts.dtype):
        moved = [parts + sign * OF_HEAD * (1 + parts.abs()) * part for sign in (-1, 1)]
        off += torch.stack([(typicality.score(one, posterior) - before).abs() for one in moved]).amax(0)
    return off


def _together(seen: Seen) -> list[Tensor]:
    """All that is seen, (N, P), (N, W) and (N, 1), as far as there is such."""
    contrast = None if seen.contrast is None else seen.contrast[:, None]
    return [part for part in (seen.pooled, seen.first_block, contrast) if part is not None]


def _apart(together: Tensor, like: Seen) -> Seen:
    """The same of other images, all in one (n, P + W + 1), as it was seen."""
    pooled, *rest = together.split([part.shape[1] for part in _together(like)], 1)
    first_block = None if like.first_block is None else rest[0]
    return Seen(pooled, first_block, None if like.contrast is None else rest[-1][:, 0])


def _quantities(scores: Scores) -> dict[str, Tensor]:
    quantities = {"posterior": log_odds(scores.log_joints), "log_density": scores.log_joints.logsumexp(1)}
    if scores.component_log_joints is not None:
        quantities["responsibilities"] = log_odds(scores.component_log_joints)
    return quantities


def _own_rounding(scores: Scores) -> dict[str, Tensor]:
    """What relative errors of the log-joints make of the same quantities, all in the worst direction."""
    joints = scores.component_log_joints
    joints = scores.log_joints[..., None] if joints is None else joints
    error = OF_HEAD * (1 + joints.abs())
    of_class = (joints.softmax(-1) * error).sum(-1)
    dim = scores.features.shape[1]  # the constant of a density is in the order of it
    return {
        "posterior": _odds_off(scores.log_joints, of_class),
        "responsibilities": _odds_off(joints, error),
        "log_density": (scores.log_joints.softmax(-1) * of_class).sum(-1) + OF_HEAD * dim,
    }


def _odds_off(log_joints: Tensor, error: Tensor) -> Tensor:
    if log_joints.shape[-1] == 1:
        return torch.zeros_like(error)
    return error + (_others(log_joints).softmax(-1) * error[..., None, :]).sum(-1)


def _others(log_joints: Tensor) -> Tensor:
    """For each of M log-joints all of them, itself left out: (..., M) to (..., M, M)."""
    itself = torch.eye(log_joints.shape[-1], dtype=torch.bool)
    return log_joints[..., None, :].masked_fill(itself, -torch.inf)


def _change(odds: Tensor, shift: Tensor) -> Tensor:
    """The most that a probability changes if its log-odds move by up to `shift`, and its own rounding."""
    probability = odds.sigmoid()
    up, down = (odds + shift).sigmoid() - probability, probability - (odds - shift).sigmoid()
    return up.maximum(down) + OF_HEAD * probability
