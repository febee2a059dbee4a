"""What the peers of `score` write of each image: the columns of its table that a softmax or mixture head has."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray


def open_session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU, with so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def infer(
    session: onnxruntime.InferenceSession, images: NDArray[np.uint8], labels: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """The columns of N images (N, channels, height, width), without their keys."""
    names = [output.name for output in session.get_outputs()]
    return columns(dict(zip(names, session.run(names, {"images": images}), strict=True)), labels)


def columns(outputs: Mapping[str, NDArray[Any]], labels: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The graph's outputs, as in `serving/bundle.py`, → the columns."""
    posterior = outputs["posterior"]  # (N, C)
    every, best = np.arange(len(posterior)), posterior.argmax(1)
    found: dict[str, NDArray[Any]] = {"label": np.array(labels)[best], "probability": posterior[every, best]}
    if "responsibilities" in outputs:
        weights = outputs["responsibilities"][every, best]  # (N, K)
        found |= {"component": weights.argmax(1).astype(np.int32), "component_probability": weights.max(1)}
    if "log_density" in outputs:
        found["log_density"] = outputs["log_density"]
    return found
