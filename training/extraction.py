"""The pooled features of a frozen trunk for batches of images, as quickly as a device makes them.

    extract = open_extractor(classifier, torch.device("cpu"))
    extract(images)  # uint8 (N, 3, H, W), as served → float32 (N, P)

On a CPU the trunk runs in ONNX Runtime, which folds batch norm into the convolutions and fuses what follows them. At
224 x 224 on one thread with AVX-512 that was 3.9 times as quick as torch in float32 for EfficientNet-Lite0 (torch in
bfloat16, channels last: 2.8 times) and 1.5 times for ResNet-18 (2.5 times); features in bfloat16 would be rounded to
three digits, and most CPUs emulate it. A GPU runs torch, in bfloat16 where it has instructions for that, channels last.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serving.runtimes import onnxruntime
from training.classifier import Classifier
from training.devices import TrainingPrecision, choose_precision, describe_device
from training.onnx_graph import write_onnx
from training.power import split_power

Extractor = Callable[[Tensor], NDArray[np.float32]]
"""Uint8 (N, 3, H, W) on the CPU, as a server hands them to the graph, to float32 (N, P)."""


class Pooled(nn.Module):
    """Uint8 images to the pooled features that a classifier's trunk makes of them."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.register_buffer("mean", classifier.mean)
        self.register_buffer("std", classifier.std)
        self.network, power = split_power(classifier.encoder.trunk)
        self.power = power or nn.Identity()

    def normalise(self, images: Tensor) -> Tensor:
        """As the classifier does."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, P)."""
        pooled: Tensor = self.power(self.network(self.normalise(images)))
        return pooled


def open_extractor(classifier: Classifier, device: torch.device) -> Extractor:
    """What makes the pooled features of a classifier's images; the classifier itself stays as it is.

    Args:
        classifier: in evaluation mode.
        device: what it runs on.
    """
    pooled = copy.deepcopy(Pooled(classifier)).requires_grad_(False).eval()
    if device.type == "cpu":
        return _in_onnxruntime(pooled.cpu(), classifier.architecture.image_shape)
    return _in_torch(pooled, device, choose_precision("auto", device).precision)


def engine_of(device: torch.device) -> str:
    """What computes features on a device, in words: what decides how they are rounded."""
    if device.type == "cpu":
        return f"ONNX Runtime {onnxruntime().__version__}"
    return f"torch {torch.__version__} in {choose_precision('auto', device).precision} on {describe_device(device)}"


def _in_onnxruntime(pooled: Pooled, shape: tuple[int, int, int]) -> Extractor:
    """A session of ONNX Runtime with as many threads as torch has."""
    for module in pooled.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]  # the same graph, traced in two thirds of the time
    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pooled.onnx"
        write_onnx(pooled, torch.zeros(2, *shape, dtype=torch.uint8), ["features"], file)
        session = onnxruntime().InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def call(images: Tensor) -> NDArray[np.float32]:
        (features,) = session.run(None, {"images": images.numpy()})
        made: NDArray[np.float32] = features
        return made

    return call


def _in_torch(pooled: Pooled, device: torch.device, precision: TrainingPrecision) -> Extractor:
    """The network in `precision`, channels last; what follows the pooling in float32."""
    pooled = pooled.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def call(images: Tensor) -> NDArray[np.float32]:
        normalised = pooled.normalise(images.to(device, memory_format=torch.channels_last))
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),  # full float32 where that is asked for
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            features = pooled.network(normalised)
        made: NDArray[np.float32] = pooled.power(features.float()).cpu().numpy()
        return made

    return call
