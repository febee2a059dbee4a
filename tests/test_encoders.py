"""Encoders: what comes out of which images, and which images are refused."""

import pytest
import torch
from torch import nn

from training.encoders import SixConv, build_encoder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (28, 28), (32, 48), (64, 64), (9, 13)])
def test_six_conv_takes_images_of_many_sizes(shape: tuple[int, int], channels: int) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("six-conv", (channels, *shape), 5, width=3).eval()
    images = torch.randn(2, channels, *shape)

    features = encoder(images)

    assert features.shape == (2, 5)
    assert encoder.trunk(images).shape == (2, 12)
    assert features.isfinite().all()
    assert not torch.allclose(features[0], features[1])


def test_six_conv_has_six_convolutions_of_the_given_widths() -> None:
    layers = [layer for layer in SixConv(3, 5) if isinstance(layer, nn.Conv2d)]

    assert [(c.in_channels, c.out_channels) for c in layers] == [(3, 5), (5, 5), (5, 10), (10, 10), (10, 20), (20, 20)]
    assert all(c.kernel_size == (3, 3) and c.padding == (1, 1) for c in layers)


def test_six_conv_halves_the_image_after_the_second_and_the_fourth_convolution() -> None:
    trunk, sizes = SixConv(1, 2).eval(), []
    for layer in trunk:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda *call: sizes.append(tuple(call[2].shape[2:])))

    pooled = trunk(torch.zeros(1, 1, 28, 20))

    assert sizes == [(28, 20), (28, 20), (14, 10), (14, 10), (7, 5), (7, 5)]
    assert pooled.shape == (1, 8)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3)])
def test_six_conv_refuses_images_that_vanish_in_its_pooling(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"must be at least 4 x 4, got {shape[0]} x {shape[1]}$"):
        build_encoder("six-conv", (1, *shape), 2)


def test_mlp_has_a_hidden_layer_for_each_given_size() -> None:
    encoder = build_encoder("mlp", (3, 4, 5), 2, hidden=(7, 6), dropout=0.25)

    linear = [(m.in_features, m.out_features) for m in encoder.modules() if isinstance(m, nn.Linear)]
    assert linear == [(60, 7), (7, 6), (6, 2)]
    assert [m.p for m in encoder.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    assert encoder(torch.zeros(3, 3, 4, 5)).shape == (3, 2)
    assert encoder.trunk(torch.zeros(3, 3, 4, 5)).shape == (3, 6)


def test_two_conv_is_the_notebooks_cnn_up_to_its_last_layer() -> None:
    encoder = build_encoder("two-conv", (3, 32, 32), width=16, hidden=(128,))

    parameters = sum(p.numel() for p in encoder.parameters())
    assert parameters + 128 * 10 + 10 == 268_650  # the notebook prints this for the whole network
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


@pytest.mark.parametrize("shape", [(4, 4), (9, 13), (28, 28)])
def test_two_conv_without_hidden_layers_gives_its_last_maps(shape: tuple[int, int]) -> None:
    encoder = build_encoder("two-conv", (1, *shape), 5, width=3)

    assert encoder.trunk(torch.zeros(2, 1, *shape)).shape == (2, 6 * (shape[0] // 4) * (shape[1] // 4))
    assert encoder(torch.zeros(2, 1, *shape)).shape == (2, 5)


@pytest.mark.parametrize(("kind", "pooled"), [("six-conv", 12), ("two-conv", 7), ("mlp", 7), ("none", 64)])
def test_without_dim_the_pooled_features_are_the_features(kind: str, pooled: int) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(kind, (1, 8, 8), width=3, hidden=(9, 7)).eval()  # type: ignore[arg-type]
    images = torch.randn(2, 1, 8, 8)

    assert torch.equal(encoder(images), encoder.trunk(images))
    assert encoder(images).shape == (2, pooled)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("mlp", (1, 8, 8), 2, hidden=(32,), dropout=0.5)
    images = torch.randn(1, 1, 8, 8)

    assert not torch.equal(encoder.train()(images), encoder(images))
    assert torch.equal(encoder.eval()(images), encoder(images))


def test_linear_is_a_projection_of_the_pixels() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("linear", (2, 3, 4), 5)
    images = torch.randn(6, 2, 3, 4)

    expected = images.reshape(6, 24) @ encoder.projection.weight.T + encoder.projection.bias
    torch.testing.assert_close(encoder(images), expected)


def test_none_hands_the_pixels_on() -> None:
    images = torch.randn(6, 2, 3, 4, generator=torch.Generator().manual_seed(0))

    assert torch.equal(build_encoder("none", (2, 3, 4), 24)(images), images.reshape(6, 24))


def test_none_refuses_another_dimension_than_the_pixels() -> None:
    with pytest.raises(ValueError, match=r"^dim must be the number of pixels \(64\) for the encoder none, got 9$"):
        build_encoder("none", (1, 8, 8), 9)
