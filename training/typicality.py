"""How typical an image is: one score for all models, in the exported graph, from what the network makes of the image.

    typicality = Typicality(fit_parts(evidence, labels, classes), scale)   # training/typicality_fit.py
    typicality(seen, features, posterior)        # (N,), higher is more typical

No single measure knows all strangers. What a class looks like is told by few directions of the pooled features z;
strangers that resemble a class are off in them. Others leave the rest of the features, which tells no classes and which
the loss has not shaped, in a state that no training image has; some do so as early as in the first block, or in the
pixels. Each of these is a part, higher for stranger images; u(x) is x at length one:

* `relative`: min_c |a - nu_c|^2 - sum_d a_d^2 / (1 + b_d), where `a` is z in the D = min(C - 1, R) directions that hold
  all class means nu, white within classes, and b the variance between classes: the squared distance to the nearest
  class less that to all images as one Gaussian. What is uncommon in every class alike cancels out.
* `outside`: ln |B (v - mean)|^2, the white distance in all directions that tell no classes, of v = [u(z), u(w)]; w are
  the spatial means of the first block's channels, where the encoder has such a block, and else v = u(z). Lengths tell
  of contrast rather than of what is seen.
* `flatness`: -ln(1 + the pixels' standard deviation in gray levels): an even picture gives the network nothing to look
  at, and its features come near to those of many a pale image. A backbone tells them without it.
* `first_block`: ln |W (u(w) - mean)|^2, the white distance of the first block's means: colours and textures.
* `residual`: ln(|v - mean|^2 - |V (v - mean)|^2), what lies beyond the R principal directions V, where some are left
  out: in the other parts it would be lost.

Of each part the 90 % and 99 % quantiles q of images that the weights have not seen make a tail, taken to be
exponential: -ln of the share of images that are as strange is e = ln 10 (1 + (part - q90) / (q99 - q90)). The score is

    - ln(1 + sigmoid(1.7 (relative - m) / s) + 2 H / ln C + 0.2 sum_k max(0, e_k - ln 25)^2)

with the mean m and the standard deviation s of `relative` among the same images, and the entropy H of the posterior.
The first two terms rank images near the classes, those between two classes among them; 1.7 makes the logistic curve
nearly the normal one. A part adds to them only in its own uppermost 4 %, so that no part dulls the others. The
constants 2, 0.2 and 25 are the same for every model (docs/tried.md).

The score has no unit that means anything; a server compares it with those of held-out images (serving/held_out.py).

References: Ren et al. 2021, A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, arXiv 2106.09022
(the relative distance); Wang et al. 2022, ViM: Out-of-Distribution with Virtual-Logit Matching, CVPR (the residual);
Mueller & Hein 2025, Mahalanobis++: Improving OOD Detection via Feature Normalization, ICML (length one); Lee et al.
2018, A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks, NeurIPS (earlier
layers).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LEAST_LENGTH = 1e-6  # of features that are scaled to length: zeros stay zeros
LEAST_DISTANCE = 1e-6  # squared, of which there is a logarithm
LEAST_RESIDUAL = 1e-9
LEAST_SPREAD = 0.01  # of a part, which may hardly vary: a hundredth of a distance, where it is a logarithm
PROBIT = 1.7  # sigmoid(1.7 x) is within 0.01 of the normal distribution function
OF_ENTROPY, OF_ALARMS = 2.0, 0.2
ALARM = math.log(25)  # of 1 in 25 images, per part
MOST_SURPRISE = 1e6  # keeps its square finite in float32
LEAST_PROBABILITY = 1e-38  # of which there is a logarithm


class Seen(NamedTuple):
    """What a classifier sees of images before its projection.

    Attributes:
        pooled: the trunk's features (N, P).
        first_block: means over space of what the trunk's first block makes, (N, W); None if it has no such block.
        contrast: the pixels' standard deviation over space, root mean square over the channels, in gray levels, (N,);
            None if the classifier gets no pixels.
    """

    pooled: Tensor
    first_block: Tensor | None = None
    contrast: Tensor | None = None

    @property
    def joined(self) -> Tensor:
        """Pooled features and first block, each at length one, (N, Q)."""
        pooled = unit(self.pooled)
        return pooled if self.first_block is None else torch.cat([pooled, unit(self.first_block)], 1)


def unit(features: Tensor) -> Tensor:
    """Features (N, P) at length one."""
    lengths: Tensor = features.norm(dim=1, keepdim=True)
    return features / lengths.clamp(min=LEAST_LENGTH)


class Parts(nn.Module):
    """What is strange about images, in several respects: (N, K), higher is stranger, all of them finite.

    They are `relative`, `outside`, then as far as there are such `flatness`, `first_block`, `residual`.

    Args:
        discriminants: weights (D, P) and offset (D,) that make pooled features `a`.
        class_means: nu, (C, D).
        between: b, (D,).
        others: weights B (R - D, Q) and offset of the joined features; a row of zeros if there are none.
        first_block: weights W (W, W) and offset of the first block's means at length one; None if there are none.
        mean: of the joined features, (Q,), if directions are left out.
        directions: V, (R, Q), if directions are left out and they are not the features'.
        seen_mean: of the features, (R,), at the joined features' length, if the directions are theirs: the first R of
            them stand for P or Q features, then, in `discriminants` and `others`.
    """

    discriminants: Tensor
    discriminants_offset: Tensor
    class_means: Tensor
    between: Tensor
    others: Tensor
    others_offset: Tensor
    first_block: Tensor | None
    first_block_offset: Tensor | None
    mean: Tensor | None
    directions: Tensor | None
    seen_mean: Tensor | None

    NAMES = (
        *("discriminants", "discriminants_offset", "class_means", "between", "others", "others_offset"),
        *("first_block", "first_block_offset", "mean", "directions", "seen_mean"),
    )

    def __init__(self, **tensors: Tensor):
        super().__init__()
        for name in self.NAMES:
            self.register_buffer(name, tensors.get(name))
        self.classes = len(self.class_means)
        self.in_features = 0 if self.seen_mean is None else len(self.seen_mean)  # directions
        self.length = 1.0 if self.mean is None else len(self.mean) ** 0.5

    def forward(self, seen: Seen, features: Tensor) -> Tensor:
        """Measure images."""
        joined, pooled = seen.joined, seen.pooled
        inside = None
        if self.seen_mean is not None:
            pooled = inside = features[:, : self.in_features] / self.length - self.seen_mean
        parts = [self._relative(pooled), self._outside(joined if inside is None else inside)]
        if seen.contrast is not None:
            parts.append(-(seen.contrast + 1).log())
        if self.first_block is not None:
            assert seen.first_block is not None
            assert self.first_block_offset is not None
            parts.append(_log_distance(unit(seen.first_block) @ self.first_block.mT + self.first_block_offset))
        if self.mean is not None:
            parts.append(self._residual(joined - self.mean, inside))
        return torch.stack(parts, 1)

    def _relative(self, pooled: Tensor) -> Tensor:
        a = pooled @ self.discriminants.mT + self.discriminants_offset
        nearest = (a[:, None] - self.class_means).square().sum(2).amin(1)
        return nearest - (a.square() / (1 + self.between)).sum(1)

    def _outside(self, joined: Tensor) -> Tensor:
        return _log_distance(joined @ self.others.mT + self.others_offset)

    def _residual(self, centred: Tensor, inside: Tensor | None) -> Tensor:
        if inside is None:
            assert self.directions is not None
            inside = centred @ self.directions.mT
        left = centred.square().sum(1) - inside.square().sum(1)
        return (left.clamp(min=0) + LEAST_RESIDUAL).log()


def _log_distance(white: Tensor) -> Tensor:
    return (white.square().sum(1) + LEAST_DISTANCE).log()


class Scale(NamedTuple):
    """What the parts are like among images that the weights have not seen.

    Attributes:
        centre: m, of `relative`, scalar.
        spread: s, scalar.
        usual: the parts' 90 % quantiles, (K,).
        tail: the 99 % quantiles less those, (K,).
    """

    centre: Tensor
    spread: Tensor
    usual: Tensor
    tail: Tensor

    @classmethod
    def of(cls, parts: NDArray[np.float64]) -> Self:
        """That of the parts (N, K) of such images."""
        relative, (usual, rare) = parts[:, 0], np.quantile(parts, [0.9, 0.99], axis=0)
        spread, tail = np.maximum(relative.std(), LEAST_SPREAD), np.maximum(rare - usual, LEAST_SPREAD)
        return cls(*(torch.tensor(value, dtype=torch.float64) for value in (relative.mean(), spread, usual, tail)))


class Typicality(nn.Module):
    """What is seen of images, features (N, D) and posterior (N, C) to scores (N,)."""

    centre: Tensor
    spread: Tensor
    usual: Tensor
    tail: Tensor

    def __init__(self, parts: Parts, scale: Scale):
        super().__init__()
        self.parts = parts
        for name, value in scale._asdict().items():
            self.register_buffer(name, value)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The one that has this `state_dict`."""
        of_parts = {name.removeprefix("parts."): v for name, v in state.items() if name.startswith("parts.")}
        return cls(Parts(**of_parts), Scale(**{name: state[name] for name in Scale._fields}))

    def forward(self, seen: Seen, features: Tensor, posterior: Tensor) -> Tensor:
        """Score images."""
        return self.score(self.parts(seen, features), posterior)

    def score(self, parts: Tensor, posterior: Tensor) -> Tensor:
        """Score images by their parts (N, K)."""
        return score(parts, posterior, self.parts.classes, Scale(self.centre, self.spread, self.usual, self.tail))


def score(parts: Tensor, posterior: Tensor, classes: int, scale: Scale) -> Tensor:
    """Parts (N, K) and posterior (N, C), with C `classes`, to scores (N,)."""
    near = (PROBIT * (parts[:, 0] - scale.centre) / scale.spread).sigmoid()
    entropy = -(posterior * posterior.clamp(min=LEAST_PROBABILITY).log()).sum(1)
    surprise = math.log(10) * (1 + (parts - scale.usual) / scale.tail)  # -ln of the share that is as strange
    alarms = (surprise - ALARM).relu().clamp(max=MOST_SURPRISE).square().sum(1)
    return -(near + OF_ENTROPY / math.log(classes) * entropy + OF_ALARMS * alarms).log1p()


class Judged(NamedTuple):
    """What heads and typicalities made of training images that they were fitted without.

    Attributes:
        typicality_scores: float32 (N,).
        label_probabilities: of each image's own label, after the temperature, float32 (N,).
    """

    typicality_scores: NDArray[np.float32]
    label_probabilities: NDArray[np.float32]
