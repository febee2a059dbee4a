"""Calibration: one temperature T, so that softmax(delta / T) is as confident as it is right.

It changes no decision and neither responsibilities nor log-density.

Reference: Guo et al. 2017, On Calibration of Modern Neural Networks, ICML.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training.classifier import Classifier
from training.fit import log_joints_of
from training.images import Labelled


def fit_temperature(log_joints: Tensor, labels: Tensor) -> float:
    """The temperature with the least negative log-likelihood.

    Args:
        log_joints: of held-out images, (N, C).
        labels: int64 (N,).

    Returns:
        T > 0; above 1 where the classifier is too sure of itself.
    """
    scores = log_joints.detach().double()
    log_temperature = torch.zeros((), dtype=torch.float64, device=scores.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(scores / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return round(log_temperature.exp().item(), 6)


def calibrate(classifier: Classifier, held_out: Labelled) -> None:
    """Give `classifier` the temperature that suits images it has not learned from."""
    classifier.temperature = fit_temperature(log_joints_of(classifier, held_out.images), held_out.labels)
