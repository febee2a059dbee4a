"""Convolutions in 8 bits: scales that no CPU saturates with, ReLU6 and depthwise layers, biases that keep the means."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from training_samples import int8_weights

from serving.runtimes import open_onnx
from training import int8
from training.int8 import safe_scales, write_int8
from training.onnx_graph import write_onnx


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (8, 16, 1, 1), (4, 1, 3, 3), (5, 2, 1, 1), (3, 1, 1, 1)])
def test_scales_are_the_least_that_are_safe(shape: tuple[int, int, int, int]) -> None:
    weights = np.random.default_rng(sum(shape)).standard_t(3, shape).astype(np.float32)

    def fits(scales: np.ndarray) -> np.ndarray:
        """Channel by channel, as the rule reads."""
        whole = np.abs(np.rint(weights / scales[:, None, None, None])).astype(int)
        rows = zip(whole.reshape(shape[0], -1), whole.transpose(0, 2, 3, 1).reshape(shape[0], -1), strict=True)
        return np.array(
            [
                max(outer.max(), inner.max()) <= 127
                and all(255 * (a + b) <= 32_767 for row in (outer, inner) for a, b in pairwise(row))
                for outer, inner in rows
            ]
        )

    scales = safe_scales(weights)
    assert scales.shape == shape[:1]
    assert scales.dtype == np.float32
    assert fits(scales).all()
    assert not fits(0.98 * scales).any()


def test_a_channel_of_zeros_has_a_scale() -> None:
    weights = np.zeros((2, 3, 3, 3), np.float32)
    assert (safe_scales(weights) == 1).all()

    weights[0] = 0.5
    assert safe_scales(weights)[1] == pytest.approx(1e-4 * safe_scales(weights)[0])


class Relu6Layers(torch.nn.Module):
    """An inverted residual as in EfficientNet-Lite, between a stem and the pooled features; weights seeded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.widen = torch.nn.Conv2d(8, 32, 1)
        self.depthwise = torch.nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.narrow = torch.nn.Conv2d(32, 8, 1)
        for layer in (self.stem, self.widen, self.depthwise, self.narrow):
            torch.nn.init.kaiming_normal_(layer.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = torch.nn.functional.relu6(self.stem(images.float() / 64 - 2))
        wide = torch.nn.functional.relu6(self.depthwise(torch.nn.functional.relu6(self.widen(first))))
        return (first + self.narrow(wide)).mean((2, 3))


@pytest.fixture(scope="module")
def relu6_graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, torch.Tensor]:
    """A graph, the same in 8 bits, and other images than those that calibrated it."""
    folder = tmp_path_factory.mktemp("relu6")
    plain, quick = folder / "model.onnx", folder / "model.int8.onnx"
    images = torch.randint(0, 256, (96, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = torch.nn.functional.interpolate(images, scale_factor=4)
    write_onnx(Relu6Layers().eval(), images[:2], ["features"], plain)
    write_int8(plain, quick, images[:64])
    return plain, quick, images[64:]


def test_relu6_and_depthwise_convolutions_are_in_8_bits(relu6_graphs: tuple[Path, Path, torch.Tensor]) -> None:
    _, quick, _ = relu6_graphs
    nodes = onnx.load(quick).graph.node
    made_by = {output: node.op_type for node in nodes for output in node.output}
    read_by = {name: node.op_type for node in nodes for name in node.input}

    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert len(convolutions) == 4
    assert all(made_by[name] == "DequantizeLinear" for node in convolutions for name in node.input[:2])
    assert all(read_by[node.output[0]] == "QuantizeLinear" for node in convolutions)
    assert not any(node.op_type == "Clip" for node in nodes)  # numbers from 0 to 6 in 8 bits are clipped
    for weights in int8_weights(quick):
        flat = np.abs(weights.astype(int).reshape(len(weights), -1))
        assert (255 * (flat[:, :-1] + flat[:, 1:])).max() <= 32_767


class Relu6LayersAndHead(Relu6Layers):
    """A head that clips, with an output whose values are zero but for a few of 1e-42."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = super().forward(images)
        return features.clamp(min=0.1), features.clamp(-0.1, 0.1), torch.relu(features * 1e-42)


def test_what_a_head_clips_is_none_of_the_ranges_and_stays_exact(tmp_path: Path) -> None:
    plain, quick = tmp_path / "model.onnx", tmp_path / "model.int8.onnx"
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    write_onnx(Relu6LayersAndHead().eval(), images[:2], ["above", "within", "tiny"], plain)

    write_int8(plain, quick, images)

    above, within, tiny = open_onnx(quick, ["above", "within", "tiny"])(images.numpy()).values()
    assert (above.min(), within.min(), within.max()) == (np.float32(0.1), np.float32(-0.1), np.float32(0.1))
    features = np.where(within < np.float32(0.1), within, above)
    assert tiny == pytest.approx(np.maximum(features.astype(np.float64), 0) * 1e-42, abs=1e-44)


def test_rounded_weights_leave_the_means_of_features(
    relu6_graphs: tuple[Path, Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, quick, images = relu6_graphs
    exact, kept = (open_onnx(graph, ["features"])(images.numpy())["features"] for graph in (plain, quick))
    rounded_alone = tmp_path / "rounded.onnx"
    monkeypatch.setattr(int8, "keep_means", lambda *_: None)
    write_int8(plain, rounded_alone, images)
    lost = open_onnx(rounded_alone, ["features"])(images.numpy())["features"]

    assert np.abs((kept - exact).mean(0)).mean() < 0.7 * np.abs((lost - exact).mean(0)).mean()
    assert np.sqrt(((kept - exact) ** 2).mean()) < 0.02 * np.sqrt((exact**2).mean())


def test_biases_make_up_for_what_rounding_takes_from_the_mean() -> None:
    """A 1x1 convolution of one input whose mean is known: of 1.3 times 100, rounding takes 0.3 times 100."""
    helper, numbers = onnx.helper, onnx.numpy_helper
    cast = helper.make_node("Cast", ["images"], ["pixels"], to=onnx.TensorProto.FLOAT)
    conv = helper.make_node("Conv", ["pixels", "weights", "bias"], ["features"])
    constants = {"weights": [[[[1.3]]], [[[-2.0]]]], "bias": [5.0, 6.0]}
    model = helper.make_model(
        helper.make_graph(
            [cast, conv],
            "graph",
            [helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["N", 1, 2, 2])],
            [helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, None)],
            [numbers.from_array(np.array(values, np.float32), name) for name, values in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    images = torch.tensor([90, 100, 110, 100], dtype=torch.uint8).reshape(1, 1, 2, 2).repeat(9, 1, 1, 1)

    int8.keep_means(model, {"weights": np.array([1, 1], np.float32)}, images)

    weights, bias = (numbers.to_array(constant) for constant in model.graph.initializer)
    assert bias == pytest.approx([5 + 0.3 * 100, 6])
    assert weights.ravel() == pytest.approx([1.3, -2])  # the quantiser rounds them
