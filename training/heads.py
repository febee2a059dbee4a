"""Heads: features z (N, D) to log-joints (N, C).

The generative heads give every class c a mixture of K Gaussians over the features and score

    component log-joints  log p(c) + log p(k|c) + log N(z; mu_ck, Sigma_ck)   (N, C, K)
    log-joints            logsumexp over k                                     (N, C)

LDA is the case K = 1 with one covariance that all classes share; MDA has a covariance per component, or one for all if
it is tied. The constant
-(D/2) log 2 pi is left out (`log_density_constant` restores it): softmax ignores it, and the penalty of the DNLL loss
is scaled without it.

`HEADS` lists the kinds of heads. A new one is a subclass of `Head` and an entry there: it scores features for the
losses and supplies the module that a bundle's graph ends in.

References: Tezekbayev et al., Deep Linear Discriminant Analysis Revisited, arXiv 2601.01619; Hastie & Tibshirani 1996,
Discriminant Analysis by Gaussian Mixtures, JRSS-B 58.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from serving.bundle import OutputName
from training.gaussians import Covariance, Gaussians, gaussian_log_density

if TYPE_CHECKING:
    from training.recipe import HeadSpec

SEPARATION = 6.0  # distance of two class means at the start, in standard deviations


class Scores(NamedTuple):
    """What a head says of a batch.

    Attributes:
        features: z, (N, D).
        log_joints: (N, C); the logits or margins of a linear head.
        component_log_joints: (N, C, K); None for a linear head.
    """

    features: Tensor
    log_joints: Tensor
    component_log_joints: Tensor | None


class Head(nn.Module):
    """What turns features (N, D) into scores of C classes.

    Attributes:
        kind: its name in `HEADS`.
        classes: C.
        components: K a class.
        dim: D.
        outputs: what its bundles answer, in the order of `serving.bundle.OUTPUTS`.
    """

    kind: str
    classes: int
    components: int = 1
    dim: int
    outputs: tuple[OutputName, ...] = ("posterior", "features")

    @abstractmethod
    def forward(self, features: Tensor) -> Scores:
        """Score features (N, D)."""

    @abstractmethod
    def served(self, temperature: float, component_temperature: float, class_biases: Tensor) -> nn.Module:
        """Features (N, D) to the tuple of `outputs`, with no parameter left to derive.

        Args:
            temperature: what the log-joints are divided by before they become the posterior.
            component_temperature: what component log-joints are divided by before they become responsibilities; a head
                without components has no use for it.
            class_biases: what is added to the divided log-joints, (C,).
        """


class DiscriminantHead(Head):
    """A Gaussian mixture a class; build one with `lda_head` or `mda_head`.

    Args:
        kind: `lda` or `mda`, for the record.
        means: (C, K, D).
        covariance: the type of every covariance.
        shared: one covariance for all classes and components.
        trainable_means: False keeps the means where they are.
    """

    outputs = ("posterior", "responsibilities", "log_density", "features")

    def __init__(self, kind: str, means: Tensor, covariance: Covariance, *, shared: bool, trainable_means: bool = True):
        super().__init__()
        self.kind = kind
        self.classes, self.components, self.dim = means.shape
        self.gaussians = Gaussians(means.flatten(0, 1), covariance, shared=shared, trainable_means=trainable_means)
        self.prior_logits = nn.Parameter(torch.zeros(self.classes))
        self.weight_logits = nn.Parameter(torch.zeros(self.classes, self.components))

    @property
    def log_density_constant(self) -> float:
        """-(D/2) log 2 pi, which turns the log-joints into true log-densities."""
        return -0.5 * self.dim * math.log(2 * math.pi)

    def log_weights(self) -> Tensor:
        """Sum of log p(c) and log p(k|c), (C, K)."""
        return self.prior_logits.log_softmax(0)[:, None] + self.weight_logits.log_softmax(1)

    def forward(self, features: Tensor) -> Scores:
        """Score features (N, D)."""
        densities = self.gaussians(features).unflatten(1, (self.classes, self.components))
        component_log_joints = self.log_weights() + densities
        return Scores(features, component_log_joints.logsumexp(2), component_log_joints)

    def served(self, temperature: float, component_temperature: float, class_biases: Tensor) -> nn.Module:
        """The same with whitening and weights worked out."""
        return ServedMixtures(self, temperature, component_temperature, class_biases)


class ServedMixtures(nn.Module):
    """Features (N, D) to posterior (N, C), responsibilities (N, C, K), log-density (N,) and features."""

    log_weights: Tensor
    means: Tensor
    whitening: Tensor
    half_log_det: Tensor
    class_biases: Tensor

    def __init__(self, head: DiscriminantHead, temperature: float, component_temperature: float, class_biases: Tensor):
        super().__init__()
        whitening, half_log_det = head.gaussians.whitening()
        self.temperature = temperature
        self.component_temperature = component_temperature
        self.log_density_constant = head.log_density_constant
        self.shape = (head.classes, head.components)
        self.shared = head.gaussians.shared
        self.register_buffer("log_weights", head.log_weights().detach())
        self.register_buffer("means", head.gaussians.means.detach())
        self.register_buffer("whitening", whitening.detach())
        self.register_buffer("half_log_det", half_log_det.detach())
        self.register_buffer("class_biases", class_biases)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Answer features (N, D)."""
        parts = self.means, self.whitening, self.half_log_det
        densities = gaussian_log_density(features, *parts, shared=self.shared)
        component_log_joints = self.log_weights + densities.unflatten(1, self.shape)
        log_joints = component_log_joints.logsumexp(2)
        log_density = log_joints.logsumexp(1) + self.log_density_constant
        posterior = (log_joints / self.temperature + self.class_biases).softmax(1)
        responsibilities = (component_log_joints / self.component_temperature).softmax(2)
        return posterior, responsibilities, log_density, features


class LinearHead(Head):
    """A weight vector and a bias a class: logits (`softmax`) or margins (`svm`)."""

    def __init__(self, kind: str, classes: int, dim: int):
        super().__init__()
        self.kind, self.classes, self.dim = kind, classes, dim
        self.linear = nn.Linear(dim, classes)

    def forward(self, features: Tensor) -> Scores:
        """Score features (N, D)."""
        return Scores(features, self.linear(features), None)

    def served(self, temperature: float, component_temperature: float, class_biases: Tensor) -> nn.Module:
        """The same layer and a softmax."""
        return ServedLinear(self, temperature, class_biases)


class ServedLinear(nn.Module):
    """Features (N, D) to posterior (N, C) and features."""

    class_biases: Tensor

    def __init__(self, head: LinearHead, temperature: float, class_biases: Tensor):
        super().__init__()
        self.linear = head.linear
        self.temperature = temperature
        self.register_buffer("class_biases", class_biases)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Answer features (N, D)."""
        return (self.linear(features) / self.temperature + self.class_biases).softmax(1), features


def lda_head(
    classes: int, dim: int, covariance: Covariance = "spherical", *, simplex: bool = False
) -> DiscriminantHead:
    """One Gaussian a class, one covariance for all; `simplex` fixes the means at the vertices of a regular simplex."""
    means = _class_means(classes, dim, simplex=simplex)
    return DiscriminantHead("lda", means[:, None, :], covariance, shared=True, trainable_means=not simplex)


def mda_head(
    classes: int,
    dim: int,
    components: int,
    covariance: Covariance = "spherical",
    *,
    tied: bool = False,
    simplex: bool = False,
) -> DiscriminantHead:
    """K Gaussians a class, each with its own covariance, or with one for all if `tied`.

    The component means start at the class mean plus noise of a tenth of its scale, and stay there if `simplex`.
    """
    means = _class_means(classes, dim, simplex=simplex)[:, None, :].repeat(1, components, 1)
    means = means + 0.1 * _mean_scale(dim) * torch.randn(means.shape)
    return DiscriminantHead("mda", means, covariance, shared=tied, trainable_means=not simplex)


def simplex_vertices(classes: int, dim: int, distance: float = SEPARATION) -> Tensor:
    """Vertices of a regular simplex around the origin, zero-padded to D coordinates, (C, D).

    Raises:
        ValueError: if dim < classes - 1, where no such simplex exists.
    """
    if dim < classes - 1:
        raise ValueError(f"dim must be at least classes - 1 = {classes - 1} for a simplex, got {dim}")
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes  # C points in a space of C - 1 dimensions
    _, _, basis = torch.linalg.svd(centred)
    vertices = centred @ basis[: classes - 1].T * (distance / math.sqrt(2))
    return nn.functional.pad(vertices, (0, dim - classes + 1)).to(torch.get_default_dtype())


class HeadKind(NamedTuple):
    """A row of `HEADS`.

    Attributes:
        build: a head with fresh weights for C classes on D features, as a recipe's [head] specifies it.
        has_density: whether its log-joints are log-densities, which some losses need and others cannot take.
        has_components: whether a class may have several components.
    """

    build: Callable[[int, int, "HeadSpec"], Head]
    has_density: bool = False
    has_components: bool = False


HEADS = {
    "lda": HeadKind(lambda c, d, spec: lda_head(c, d, spec.covariance, simplex=spec.simplex), has_density=True),
    "mda": HeadKind(
        lambda c, d, spec: mda_head(c, d, spec.components, spec.covariance, tied=spec.tied, simplex=spec.simplex),
        has_density=True,
        has_components=True,
    ),
    "softmax": HeadKind(lambda c, d, _: LinearHead("softmax", c, d)),
    "svm": HeadKind(lambda c, d, _: LinearHead("svm", c, d)),
}


def build_head(spec: "HeadSpec", classes: int, dim: int) -> Head:
    """A head for C classes on D features."""
    return HEADS[spec.kind].build(classes, dim, spec)


def _mean_scale(dim: int) -> float:
    """Standard deviation per coordinate that puts two random means about SEPARATION apart."""
    return SEPARATION / math.sqrt(2 * dim)


def _class_means(classes: int, dim: int, *, simplex: bool) -> Tensor:
    return simplex_vertices(classes, dim) if simplex else _mean_scale(dim) * torch.randn(classes, dim)
