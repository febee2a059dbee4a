"""The linear read-out of a head, and what it looks for in pixels.

A softmax or SVM head has logits w_c . z + b_c. So has LDA: with one covariance for all classes the log-joints share the
term -z' Sigma^-1 z / 2, which no posterior depends on; what is left is linear in z.
"""

import numpy as np
import torch

from training.analysis.evidence import FloatArray
from training.classifier import Classifier
from training.heads import DiscriminantHead, Head, LinearHead


@torch.no_grad()
def linear_readout(head: Head) -> tuple[FloatArray, FloatArray] | None:
    """Weights (C, D) and bias (C,), or None if the head has no linear read-out, as with a covariance per component.

    For LDA the quadratic term that is left out is taken about the mean of the class means, weighted by the priors, so
    that the logits do not depend on where the features have their origin. Their softmax is the posterior at T = 1.
    """
    if isinstance(head, LinearHead):
        return head.linear.weight.detach().double().numpy(), head.linear.bias.detach().double().numpy()
    if not isinstance(head, DiscriminantHead) or head.components > 1 or not head.gaussians.shared:
        return None
    lower = head.gaussians.cholesky().double()[0]
    means, log_prior = head.gaussians.means.double(), head.log_weights()[:, 0].double()
    centre = log_prior.exp() @ means
    weights = torch.cholesky_solve((means - centre).T, lower).T
    bias = log_prior - 0.5 * ((means - centre) * weights).sum(1) - weights @ centre
    return weights.numpy(), bias.numpy()


@torch.no_grad()
def pixel_templates(classifier: Classifier) -> FloatArray | None:
    """What each class's logit weighs in the pixels, (C, channels, H, W), in logits per pixel value.

    None if the encoder or the read-out is not linear.
    """
    readout = linear_readout(classifier.head)
    if readout is None or classifier.architecture.encoder.kind not in ("linear", "none"):
        return None
    weights = torch.from_numpy(readout[0])
    if isinstance(classifier.encoder.projection, torch.nn.Linear):
        weights = weights @ classifier.encoder.projection.weight.double()
    templates = weights.unflatten(1, classifier.architecture.image_shape) / classifier.std.double()
    return np.asarray(templates.numpy(), np.float64)
