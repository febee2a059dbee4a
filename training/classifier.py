"""A classifier: uint8 images (N, channels, H, W) → normalise → encoder → head.

`Classifier` is what training changes; `ServedGraph` is the same computation as the exported graph does it, with
posterior, responsibilities and log-density, and no parameter left to derive.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serving.bundle import GENERATIVE_OUTPUTS, LINEAR_OUTPUTS
from training.encoders import Encoder, build_encoder, pooled_dim
from training.heads import DiscriminantHead, Head, LinearHead, Scores, gaussian_log_density, lda_head, mda_head
from training.recipe import EncoderSpec, HeadSpec


@dataclass(frozen=True)
class Architecture:
    """Everything but the weights: enough to build the module that a state dict fits."""

    image_shape: tuple[int, int, int]  # channels, height, width
    classes: int
    encoder: EncoderSpec
    head: HeadSpec

    @property
    def dim(self) -> int:
        """D, the number of features."""
        spec = self.encoder
        return spec.dim or pooled_dim(spec.kind, self.image_shape, width=spec.width, hidden=spec.hidden)


class Classifier(nn.Module):
    """Images to scores.

    Args:
        architecture: what was built, to build it again.
        encoder: normalised images to features (N, D).
        head: features to scores.

    Attributes:
        temperature: what the log-joints are divided by before they become a posterior; see training/calibrate.py.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture, encoder: Encoder, head: Head):
        super().__init__()
        self.architecture = architecture
        channels = architecture.image_shape[0]
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.encoder = encoder
        self.head = head
        self.temperature = 1.0

    @torch.no_grad()
    def learn_normalisation(self, images: Tensor) -> None:
        """Take mean and standard deviation per channel, in pixel values, from uint8 images."""
        for channel in range(images.shape[1]):
            histogram = torch.bincount(images[:, channel].flatten().int(), minlength=256).double()
            share, levels = histogram / histogram.sum(), torch.arange(256, dtype=torch.float64, device=images.device)
            mean = (share * levels).sum()
            self.mean[channel] = mean
            self.std[channel] = ((share * (levels - mean) ** 2).sum()).sqrt().clamp(min=1.0)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 to zero mean and unit variance per channel."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def forward(self, images: Tensor) -> Scores:
        """Score uint8 images (N, channels, H, W)."""
        scores: Scores = self.head(self.encoder(self.normalise(images)))
        return scores


def build_classifier(architecture: Architecture) -> Classifier:
    """A classifier with fresh weights, drawn from torch's global generator.

    Raises:
        ValueError: if the parts do not fit each other.
    """
    spec = architecture.encoder
    encoder = build_encoder(
        spec.kind, architecture.image_shape, spec.dim, width=spec.width, hidden=spec.hidden, dropout=spec.dropout
    )
    return Classifier(architecture, encoder, build_head(architecture.head, architecture.classes, architecture.dim))


def build_head(spec: HeadSpec, classes: int, dim: int) -> Head:
    """A head for C classes on D features."""
    if spec.kind == "lda":
        return lda_head(classes, dim, spec.covariance, simplex=spec.simplex)
    if spec.kind == "mda":
        return mda_head(classes, dim, spec.components, spec.covariance, simplex=spec.simplex)
    return LinearHead(spec.kind, classes, dim)


class ServedGraph(nn.Module):
    """The graph that a bundle holds: uint8 images to the tuple of outputs that `output_names` lists."""

    log_weights: Tensor
    means: Tensor
    whitening: Tensor
    half_log_det: Tensor

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier
        self.temperature = classifier.temperature
        head = classifier.head
        self.generative = isinstance(head, DiscriminantHead)
        if isinstance(head, DiscriminantHead):
            whitening, half_log_det = head.gaussians.whitening()
            self.log_density_constant = head.log_density_constant
            self.shape = (head.classes, head.components)
            self.register_buffer("log_weights", head.log_weights().detach())
            self.register_buffer("means", head.gaussians.means.detach())
            self.register_buffer("whitening", whitening.detach())
            self.register_buffer("half_log_det", half_log_det.detach())

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return GENERATIVE_OUTPUTS if self.generative else LINEAR_OUTPUTS

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Answer images with posterior (N, C)[, responsibilities (N, C, K), log_density (N,)], features (N, D)."""
        features = self.classifier.encoder(self.classifier.normalise(images))
        if not self.generative:
            return self._posterior(self.classifier.head(features).log_joints), features
        densities = gaussian_log_density(features, self.means, self.whitening, self.half_log_det)
        component_log_joints = self.log_weights + densities.unflatten(1, self.shape)
        log_joints = component_log_joints.logsumexp(2)
        log_density = log_joints.logsumexp(1) + self.log_density_constant
        return self._posterior(log_joints), component_log_joints.softmax(2), log_density, features

    def _posterior(self, log_joints: Tensor) -> Tensor:
        return (log_joints / self.temperature).softmax(1)
