"""A graph's convolutions in 8 bits, by ONNX Runtime's static quantisation, so that every CPU answers the same.

Activations are unsigned, each tensor's range the one that all but one in 100,000 of its values take on training images;
the few beyond would make every step coarser. They are quantised behind a ReLU or a ReLU6 (`Clip`), not before it and
then once more. Weights are signed and symmetric, with a scale per output channel; what their rounding does to the mean
of a channel on those images goes into its bias.

CPUs without VNNI multiply by `vpmaddubsw`, which adds the products of two neighbours in 16 bits and saturates. So a
channel's scale is the least for which 255 (|w1| + |w2|) <= 32,767 for all neighbours: no sum can saturate, and the
kernels' integers are the same with VNNI and without. Neighbours are those in memory, where input channels lie
innermost or outermost.

Reference: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV, arXiv
1906.04721 (its empirical correction, of the weights' rounding alone).
"""

import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from serving.runtimes import CPU_PROVIDER, onnxruntime

PERCENTILE = 99.999
LARGEST = 127  # of a weight
LARGEST_PAIR = 32_767 // 255  # of the absolute values of two neighbours
SMALLEST = 1e-4  # of the largest scale: what such a channel adds is less than a step of the outputs, which share one
COARSER = 1.0005  # how much a scale grows at a time until its rounded weights keep the rule
CALIBRATION_BATCH = 32
MEANS_BATCH = 8  # few, for what every convolution is given is held at once
ZERO = "zero_of_head"
IN_8_BITS = ("Conv", "Relu", "Clip", "MaxPool")  # the latter three in the convolutions' own numbers


def write_int8(source: Path, target: Path, images: Tensor) -> None:
    """Write an ONNX graph with its convolutions in 8 bits.

    Args:
        source: the graph in float32.
        target: the file to write.
        images: uint8 (N, channels, H, W), as the graph takes them; they calibrate the activations' ranges.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(None):  # it counts its histograms aloud
        prepared = Path(scratch, source.name)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        set_head_apart(model)
        scales = _scales_of(model)
        keep_means(model, scales, images)
        onnx.save(model, prepared)
        quantize_static(
            str(prepared),
            str(target),
            _reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(IN_8_BITS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": PERCENTILE, "TensorQuantOverrides": _overrides(scales)},
        )


def set_head_apart(model: Any) -> None:
    """Write each Relu and Clip of an ONNX graph that neither follows a convolution nor leads to one as Max and Min.

    ONNX Runtime counts the values of all tensors of these kinds. Those of the head, which stays as it is, may be zero
    but for a few of 1e-40, and of such there is no histogram.
    """
    from onnx import numpy_helper

    near: set[str] = set()  # what leads to a convolution or comes out of one
    for node in reversed(model.graph.node):
        if node.op_type == "Conv" or near.intersection(node.output):
            near.update(node.input)
    near.update(*(node.output for node in model.graph.node if node.op_type == "Conv"))
    nodes = []
    for node in model.graph.node:
        of_head = node.op_type in ("Relu", "Clip") and not near.intersection((node.input[0], *node.output))
        nodes.extend(_max_and_min(node) if of_head else [node])
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    if any(ZERO in node.input for node in nodes):
        model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), ZERO))


def _max_and_min(node: Any) -> list[Any]:
    """The nodes that do what a Relu or Clip does."""
    from onnx import helper

    bounds = [ZERO] if node.op_type == "Relu" else node.input[1:]
    steps = [(kind, bound) for kind, bound in zip(("Max", "Min"), bounds, strict=False) if bound] or [("Identity", "")]
    names = [node.input[0], *(f"{node.output[0]}_{kind}" for kind, _ in steps[:-1]), node.output[0]]
    return [
        helper.make_node(kind, [before, bound] if bound else [before], [after], f"{node.name}_{kind}")
        for (kind, bound), (before, after) in zip(steps, pairwise(names), strict=True)
    ]


def safe_scales(weights: NDArray[np.floating]) -> NDArray[np.float32]:
    """The least scale of each output channel whose products cannot saturate.

    Args:
        weights: of a convolution, (O, I, height, width).

    Returns:
        (O,), above zero: weights / scale, rounded, keep within 127 and their neighbours' sums within 128.
    """
    size = np.abs(weights.astype(np.float64))
    scales = np.maximum(largest_pairs(size) / LARGEST_PAIR, size.reshape(len(size), -1).max(1) / LARGEST)
    scales = np.maximum(scales, SMALLEST * scales.max() or 1.0)
    while True:
        rounded: NDArray[np.float32] = scales.astype(np.float32)
        over = largest_pairs(np.rint(size / rounded[:, None, None, None])) > LARGEST_PAIR
        if not over.any():
            return rounded
        scales[over] *= COARSER


def largest_pairs(size: NDArray[np.floating]) -> NDArray[np.floating]:
    """The largest sum of two neighbours in each output channel of absolute weights (O, I, height, width); (O,)."""
    count = len(size)
    rows = [size.reshape(count, -1), size.transpose(0, 2, 3, 1).reshape(count, -1)]
    sums = [(row[:, :-1] + row[:, 1:]).max(1, initial=0) for row in rows]
    largest: NDArray[np.floating] = np.maximum(*sums)
    return largest


def keep_means(model: Any, scales: dict[str, NDArray[np.float32]], images: Tensor) -> None:
    """Add to the biases of an ONNX graph what rounding the weights takes from the mean outputs; borders are neglected.

    Args:
        model: its convolutions have a bias.
        scales: of their weights, by name.
        images: uint8 (N, channels, H, W), as the graph takes them.
    """
    from onnx import numpy_helper

    constants = {constant.name: constant for constant in model.graph.initializer}
    means = _mean_inputs(model, images)
    for node in _convolutions(model):
        weights, bias = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        steps = scales[node.input[1]][:, None, None, None]
        lost = (weights - steps * np.rint(weights / steps)).sum((2, 3), dtype=np.float64)  # (O, I / groups)
        seen = means[node.input[0]].reshape(-1, lost.shape[1])  # (groups, I / groups)
        kept = bias + (lost * seen.repeat(len(lost) // len(seen), 0)).sum(1)
        constants[node.input[2]].CopyFrom(numpy_helper.from_array(kept.astype(np.float32), node.input[2]))


def _mean_inputs(model: Any, images: Tensor) -> dict[str, NDArray[np.float64]]:
    """What each convolution is given on average, by the name of its input: (I,)."""
    import onnx

    names = sorted({node.input[0] for node in _convolutions(model)})
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    probed.graph.ClearField("output")
    probed.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime().InferenceSession(probed.SerializeToString(), providers=[CPU_PROVIDER])
    totals = dict.fromkeys(names, np.float64(0))
    for batch in images.split(MEANS_BATCH):
        for name, values in zip(names, session.run(names, {"images": batch.numpy()}), strict=True):
            totals[name] = totals[name] + values.mean((2, 3), dtype=np.float64).sum(0)
    return {name: np.asarray(total / len(images)) for name, total in totals.items()}


def _convolutions(model: Any) -> list[Any]:
    """The convolutions whose weights are constants."""
    constants = {constant.name for constant in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in constants]


def _scales_of(model: Any) -> dict[str, NDArray[np.float32]]:
    """The safe scales of every convolution's weights, by name."""
    from onnx import numpy_helper

    constants = {constant.name: constant for constant in model.graph.initializer}
    return {
        node.input[1]: safe_scales(numpy_helper.to_array(constants[node.input[1]])) for node in _convolutions(model)
    }


def _overrides(scales: dict[str, NDArray[np.float32]]) -> dict[str, list[dict[str, Any]]]:
    """Scales as `quantize_static` takes them."""
    zero = np.array(0, np.int8)
    return {
        name: [{"axis": 0, "scale": np.array(scale), "zero_point": zero} for scale in of_channels]
        for name, of_channels in scales.items()
    }


def _reader(images: Tensor) -> Any:
    """The images in the shape that ONNX Runtime calibrates by."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(CALIBRATION_BATCH))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    return Reader()
