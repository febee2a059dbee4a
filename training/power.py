"""Pooled features made less skewed: their signed square roots, scaled to one length.

    trunk = with_power(network, 1280)  # images → (N, 1280), every row of length sqrt(1280)

Features after a ReLU are zero or small for most images and large for a few; a Gaussian suits their square roots better,
and lengths tell of contrast rather than of what is seen.

Reference: Perronnin, Sánchez & Mensink 2010, Improving the Fisher Kernel for Large-Scale Image Classification, ECCV
(power and L2 normalisation).
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

OFFSET = (
    3e-3  # bounds the slope at zero, to 9, and with it how much rounding is magnified; smaller ones gain no accuracy
)
LEAST_LENGTH = 1e-6  # of what is scaled to length: zeros stay zeros


class Power(nn.Module):
    """sign(f) (sqrt(|f| + e) - sqrt(e)), then scaled to length sqrt(P).

    Args:
        dim: P.
    """

    offset: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.length = math.sqrt(dim)
        self.register_buffer("offset", torch.tensor(OFFSET))

    def forward(self, features: Tensor) -> Tensor:
        """(N, P) to (N, P)."""
        roots = features.sign() * ((features.abs() + self.offset).sqrt() - self.offset.sqrt())
        scaled: Tensor = normalize(roots, dim=1, eps=LEAST_LENGTH)
        return scaled * self.length

    def slope(self, features: Tensor) -> Tensor:
        """How much the result changes with each feature, its own length's change left out, (N, P)."""
        roots = (features.abs() + self.offset).sqrt()
        lengths: Tensor = (roots - self.offset.sqrt()).norm(dim=1, keepdim=True).clamp(min=LEAST_LENGTH)
        return self.length / (2 * roots * lengths)


def with_power(network: nn.Module, dim: int) -> nn.Sequential:
    """A trunk of a network and the square roots of its `dim` pooled features."""
    return nn.Sequential(OrderedDict(network=network, power=Power(dim)))


def split_power(trunk: nn.Module) -> tuple[nn.Module, Power | None]:
    """The network of a trunk, and the square roots that it ends in, if it does."""
    if isinstance(trunk, nn.Sequential) and len(trunk) and isinstance(power := trunk[-1], Power):
        return trunk[0], power
    return trunk, None
