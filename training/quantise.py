"""The int8 variant of a bundle: the convolutions of its ONNX graph in 8 bits, where that costs next to nothing.

Static quantisation by ONNX Runtime: symmetric weights per output channel, activations by the range that all but one in
100,000 of them take on training images; the few beyond would make every step coarser. The head stays in float32, for a
density does not survive 8 bits.
"""

import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from serving.bundle import GOLDEN_INT8, ONNX, ONNX_INT8, Bundle, Variant
from serving.runtimes import Outputs, open_onnx
from training.data import as_served
from training.evaluate import run_graph
from training.fit import Labelled

CALIBRATION_IMAGES = 1024
PERCENTILE = 99.999
BATCH = 32
MOST_ACCURACY_LOST = 0.002
LEAST_AGREEMENT = 0.99


class QuantisationError(ValueError):
    """The int8 graph answers too differently."""


def add_int8(bundle: Bundle, images: Tensor, test: Labelled, exact: Outputs) -> Variant:
    """Write the int8 variant of a bundle that is being made, and measure it.

    Args:
        bundle: its folder has the float32 graph.
        images: of the training split, uint8 (N, channels, H, W); a few hundred are used.
        test: the test split.
        exact: what the float32 graph answers for it.

    Raises:
        QuantisationError: if the int8 graph loses too much.
    """
    spec = bundle.manifest.input
    _write_graph(bundle.path, as_served(images[:CALIBRATION_IMAGES], spec))
    graph = open_onnx(bundle.path / ONNX_INT8, bundle.manifest.outputs)
    golden, _ = bundle.read_golden()
    answers: dict[str, Any] = graph(golden)
    np.savez(bundle.path / GOLDEN_INT8, images=golden, **answers)
    quick = run_graph(graph, test.images, spec)
    labels = test.labels.numpy()
    before, after = (float((outputs["posterior"].argmax(1) == labels).mean()) for outputs in (exact, quick))
    agreement = assignments_that_agree(exact, quick)
    if before - after > MOST_ACCURACY_LOST:
        raise QuantisationError(
            f"accuracy in int8 must be within {MOST_ACCURACY_LOST:.1%} of {before:.2%}, got {after:.2%}"
        )
    if agreement is not None and agreement < LEAST_AGREEMENT:
        raise QuantisationError(
            f"assignments in int8 must agree for {LEAST_AGREEMENT:.0%} of images, got {agreement:.2%}"
        )
    return Variant(accuracy=round(after, 6), agreement=None if agreement is None else round(agreement, 6))


def assignments_that_agree(first: Outputs, second: Outputs) -> float | None:
    """Share of images that two graphs give to the same component of the class that the first one finds likeliest.

    None for a head without components.
    """
    if "responsibilities" not in first:
        return None
    labels = first["posterior"].argmax(1)
    rows = np.arange(len(labels))
    chosen = [outputs["responsibilities"][rows, labels].argmax(1) for outputs in (first, second)]
    return float((chosen[0] == chosen[1]).mean())


def _write_graph(folder: Path, images: Tensor) -> None:
    """Write model.int8.onnx beside model.onnx; `images` calibrate the ranges, as the graph takes them."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(BATCH))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(None):  # it counts its histograms aloud
        prepared = Path(scratch, ONNX)
        quant_pre_process(str(folder / ONNX), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(folder / ONNX_INT8),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": PERCENTILE},
        )
