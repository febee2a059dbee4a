"""A classifier: uint8 images (N, channels, H, W) → normalise → encoder → head.

`Classifier` is what training changes; `ServedGraph` is the same computation as the exported graph does it, whose head
answers posterior and features, and what else it knows, and which may answer how typical an image is.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from serving.bundle import OutputName
from training.backbones import backbone_of
from training.encoders import Encoder, build_encoder, pooled_dim
from training.heads import Head, Scores, build_head
from training.recipe import EncoderSpec, HeadSpec
from training.typicality import Seen, Typicality


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
        class_biases: what is added to them then, (C,); zeros unless they help (training/class_biases.py).
        calibration: how the two were come by, as plain values: why, in words, and held_out, the figures, of the
            temperature, and class_biases, a `FoundBiases`; empty if nobody asked for them.
        component_temperature: what component log-joints are divided by before they become responsibilities; see
            training/component_calibration.py.
        component_calibration: how that was come by, likewise.
        typicality: how typical an image is, if images were held out that this can be compared with.
    """

    mean: Tensor
    std: Tensor
    class_biases: Tensor

    def __init__(self, architecture: Architecture, encoder: Encoder, head: Head):
        super().__init__()
        self.architecture = architecture
        channels = architecture.image_shape[0]
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.encoder = encoder
        self.head = head
        self.temperature = 1.0
        self.register_buffer("class_biases", torch.zeros(architecture.classes), persistent=False)
        self.calibration: dict[str, Any] = {}
        self.component_temperature = 1.0
        self.component_calibration: dict[str, Any] = {}
        self.typicality: Typicality | None = None

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

    def calibrated(self, log_joints: Tensor) -> Tensor:
        """Log-joints (..., C) as softmax makes the posterior of them: at the temperature, with the classes' biases."""
        return log_joints / self.temperature + self.class_biases.to(log_joints)

    def take_calibration(self, other: "Classifier") -> None:
        """Become as sure of classes and components as another classifier, and as hard to surprise."""
        self.temperature, self.class_biases, self.calibration = other.temperature, other.class_biases, other.calibration
        self.component_temperature = other.component_temperature
        self.component_calibration = other.component_calibration
        self.typicality = other.typicality

    def inspect(self, images: Tensor) -> Seen:
        """What is seen of uint8 images before the projection: for their typicality."""
        pixels = images.to(self.mean.dtype)
        pooled, first_block = self.encoder.inspect(self.normalise(pixels))
        return Seen(pooled, first_block, _contrast(pixels) if self.sees_pixels else None)

    @property
    def sees_pixels(self) -> bool:
        """Whether its images are pixels that no backbone sees first; to a `head_stage` they are features."""
        _, height, width = self.architecture.image_shape
        return backbone_of(self.architecture.encoder.kind) is None and height * width > 1

    def forward(self, images: Tensor) -> Scores:
        """Score uint8 images (N, channels, H, W)."""
        scores: Scores = self.head(self.encoder(self.normalise(images)))
        return scores


def _contrast(pixels: Tensor) -> Tensor:
    """Standard deviation over space, root mean square over the channels, of (N, channels, H, W); (N,)."""
    by_channel = pixels.flatten(2)
    return (by_channel - by_channel.mean(2, keepdim=True)).square().mean((1, 2)).sqrt()


def build_classifier(architecture: Architecture) -> Classifier:
    """A classifier with fresh weights, drawn from torch's global generator.

    Raises:
        ValueError: if the parts do not fit each other.
    """
    spec = architecture.encoder
    encoder = build_encoder(
        spec.kind,
        architecture.image_shape,
        spec.dim,
        width=spec.width,
        hidden=spec.hidden,
        dropout=spec.dropout,
        power=spec.power,
    )
    return Classifier(architecture, encoder, build_head(architecture.head, architecture.classes, architecture.dim))


class ServedGraph(nn.Module):
    """The graph that a bundle holds: uint8 images to the tuple of outputs that `output_names` lists.

    Attributes:
        output_names: such as posterior (N, C) and features (N, D), in order.
    """

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier
        *answers, features = classifier.head.outputs
        scores: tuple[OutputName, ...] = () if classifier.typicality is None else ("typicality_score",)
        self.output_names: tuple[OutputName, ...] = (*answers, *scores, features)
        self.served_head = classifier.head.served(
            classifier.temperature, classifier.component_temperature, classifier.class_biases
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Answer images."""
        encoder, typicality = self.classifier.encoder, self.classifier.typicality
        if typicality is None:
            answers: tuple[Tensor, ...] = self.served_head(encoder(self.classifier.normalise(images)))
            return answers
        seen = self.classifier.inspect(images)
        *others, features = self.served_head(encoder.projection(seen.pooled))
        return (*others, typicality(seen, features, others[0]), features)
