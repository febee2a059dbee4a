"""Losses: log-joints and labels to a scalar, the mean over the batch.

delta below are log-joints (N, C), y labels (N,). Every loss stays finite on log-joints of +-1e4: the penalties that
raise e to a log-joint go on as a straight line above `EXP_CAP`, where no working model comes near.

Reference: Tezekbayev et al., Deep Linear Discriminant Analysis Revisited, arXiv 2601.01619.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  the name that every reader of torch code knows
from torch import Tensor

from training.heads import Scores

EXP_CAP = 50.0


def cross_entropy(log_joints: Tensor, labels: Tensor) -> Tensor:
    """-log p(y|z): discriminative training."""
    return F.cross_entropy(log_joints, labels)


def nll(log_joints: Tensor, labels: Tensor) -> Tensor:
    """-delta_y: generative training. Unbounded below: features may shrink for ever."""
    return -_of_label(log_joints, labels).mean()


def dnll(log_joints: Tensor, labels: Tensor, weight: float) -> Tensor:
    """-delta_y + weight * sum_c exp(delta_c): the negative log-likelihood, kept from collapse."""
    return nll(log_joints, labels) + weight * _exp(log_joints).sum(1).mean()


def em_dnll(component_log_joints: Tensor, labels: Tensor, weight: float) -> Tensor:
    """DNLL for mixtures: the label's term is the expectation over its components, (N, C, K) to a scalar.

    With r_k = p(k|y, z) held constant: -sum_k r_k (log pi_y + log w_yk + log N_yk) + weight * sum_c exp(delta_c).
    """
    of_label = _of_label(component_log_joints, labels)  # (N, K)
    responsibilities = of_label.detach().softmax(1)
    penalty = _exp(component_log_joints.logsumexp(2)).sum(1).mean()
    return -(responsibilities * of_label).sum(1).mean() + weight * penalty


def logistic(log_joints: Tensor, labels: Tensor) -> Tensor:
    """-log s(delta_y) - sum over the other classes of log s(-delta_c): one against all."""
    return F.binary_cross_entropy_with_logits(log_joints, _one_hot(log_joints, labels), reduction="none").sum(1).mean()


def poisson_nll(log_joints: Tensor, labels: Tensor) -> Tensor:
    """Poisson NLL of one-hot counts with log-rates delta: DNLL of weight 1, divided by C."""
    return (_exp(log_joints) - _one_hot(log_joints, labels) * log_joints).mean()


def lda(log_joints: Tensor, labels: Tensor) -> Tensor:
    """The loss whose gradient in delta is exp(delta) - onehot(y): DNLL of weight 1."""
    return dnll(log_joints, labels, 1.0)


def hinge(margins: Tensor, labels: Tensor) -> Tensor:
    """Multi-class hinge: sum over the other classes of max(0, 1 - s_y + s_c), divided by C."""
    violations = (1 - _of_label(margins, labels)[:, None] + margins).clamp(min=0)
    return (violations * (1 - _one_hot(margins, labels))).sum(1).mean() / margins.shape[1]


def hinge_loop(margins: Tensor, labels: Tensor) -> Tensor:
    """`hinge` as its definition reads, one image and one class at a time."""
    total = margins.new_zeros(())
    for row, label in zip(margins, labels, strict=True):
        for other in range(len(row)):
            if other != label:
                total = total + (1 - row[label] + row[other]).clamp(min=0)
    return total / margins.numel()


def fisher(features: Tensor, labels: Tensor) -> Tensor:
    """-(between-class scatter) / (within-class scatter) of a batch of features (N, D), both as traces."""
    one_hot = F.one_hot(labels, int(labels.max()) + 1).to(features.dtype)  # (N, C)
    counts = one_hot.sum(0)
    means = (one_hot.T @ features) / counts.clamp(min=1)[:, None]
    within = (features - means[labels]).square().sum()
    between = (counts[:, None] * (means - features.mean(0)).square()).sum()
    return -between / (within + torch.finfo(features.dtype).eps * (1 + between.detach()))


def build_loss(kind: str, weight: float) -> Callable[[Scores, Tensor], Tensor]:
    """The loss named `kind` as a function of a head's scores; `weight` is the lambda of DNLL and EM-DNLL."""
    if kind == "em-dnll":
        return lambda scores, labels: em_dnll(_components(scores), labels, weight)
    if kind == "dnll":
        return lambda scores, labels: dnll(scores.log_joints, labels, weight)
    if kind == "fisher":
        return lambda scores, labels: fisher(scores.features, labels)
    loss = OF_LOG_JOINTS[kind]
    return lambda scores, labels: loss(scores.log_joints, labels)


OF_LOG_JOINTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "nll": nll,
    "logistic": logistic,
    "poisson-nll": poisson_nll,
    "lda": lda,
    "hinge": hinge,
}


def _exp(log_joints: Tensor) -> Tensor:
    """e^x up to EXP_CAP, its tangent above."""
    return log_joints.clamp(max=EXP_CAP).exp() * (1 + (log_joints - EXP_CAP).clamp(min=0))


def _of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """Row n of scores (N, C, ...) at class labels[n], (N, ...)."""
    return scores[torch.arange(len(labels), device=labels.device), labels]


def _one_hot(scores: Tensor, labels: Tensor) -> Tensor:
    return F.one_hot(labels, scores.shape[1]).to(scores.dtype)


def _components(scores: Scores) -> Tensor:
    if scores.component_log_joints is None:
        raise ValueError("em-dnll must be used with an mda head, got a head without components")
    return scores.component_log_joints
