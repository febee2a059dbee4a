"""The signed square roots of pooled features, judged by numpy's."""

import numpy as np
import torch
from torch import nn

from training.backbones import build_backbone
from training.classifier import Architecture, Classifier, build_classifier
from training.condition import OF_FEATURES, condition
from training.encoders import build_encoder
from training.power import OFFSET, Power
from training.recipe import EncoderSpec, HeadSpec


def features(seed: int = 0) -> torch.Tensor:
    """(5, 12), of both signs, a third of them zero."""
    drawn = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[:, ::3] = 0
    return drawn


def test_power_is_the_signed_square_root_of_one_length() -> None:
    drawn = features()

    found = Power(12).double()(drawn).numpy()

    offset = np.float64(np.float32(OFFSET))
    values = drawn.numpy()
    roots = np.sign(values) * (np.sqrt(np.abs(values) + offset) - np.sqrt(offset))
    np.testing.assert_allclose(found, roots / np.linalg.norm(roots, axis=1, keepdims=True) * np.sqrt(12), rtol=1e-12)
    np.testing.assert_allclose((found**2).mean(1), np.ones(5), rtol=1e-12)


def test_zeros_stay_zeros() -> None:
    assert torch.equal(Power(12)(torch.zeros(2, 12)), torch.zeros(2, 12))


def test_slope_is_the_derivative_at_a_fixed_length() -> None:
    drawn, power = features(), Power(12).double()

    roots = [(size + power.offset).sqrt() - power.offset.sqrt() for size in (drawn.abs(), drawn.abs() + 1e-7)]
    scale = 12**0.5 / roots[0].norm(dim=1, keepdim=True)

    expected = (roots[1] - roots[0]) / 1e-7 * scale
    torch.testing.assert_close(power.slope(drawn), expected, rtol=1e-4, atol=1e-6)


def test_float32_is_within_what_the_condition_allows() -> None:
    drawn, power = features(3).repeat(200, 1), Power(12)
    drawn = drawn * (1 + OF_FEATURES * torch.rand(drawn.shape, generator=torch.Generator().manual_seed(1)))

    error = (power(drawn.float()).double() - power.double()(drawn)).abs()

    size = drawn.abs().maximum(drawn.square().mean(1, keepdim=True).sqrt())
    assert (error <= OF_FEATURES * (1 + power.slope(drawn) * size)).all()


def test_trunk_ends_in_the_square_roots() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", (3, 64, 64), power=True).eval()
    images = torch.randn(2, 3, 64, 64)

    with torch.inference_mode():
        pooled = encoder.trunk(images)
        plain = encoder.trunk[0](images)  # type: ignore[index]

    assert encoder(images).shape == (2, 512)
    torch.testing.assert_close(pooled, Power(512)(plain))


def test_small_features_of_a_backbone_are_taken_to_be_less_sure() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    network = build_backbone("resnet18")
    without, powered = (classifier_of(network, power=power) for power in (False, True))

    before = condition(without, images)["features"]
    after = condition(powered, images)["features"]

    pooled = without.encoder.trunk(without.normalise(images))
    smallest = pooled.abs().argmin(1)
    assert (before.argmin(1) != smallest).any()
    assert torch.equal(after.argmax(1), smallest)


def classifier_of(network: nn.Module, *, power: bool) -> Classifier:
    spec = EncoderSpec(kind="resnet18", power=power)
    classifier = build_classifier(Architecture((3, 64, 64), 2, spec, HeadSpec(kind="lda")))
    (classifier.encoder.trunk[0] if power else classifier.encoder.trunk).load_state_dict(network.state_dict())  # type: ignore[index,operator,union-attr]
    return classifier.double().eval()
