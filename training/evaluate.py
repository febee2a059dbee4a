"""How good a classifier is on a split: accuracy, NLL, Brier score, ECE, and what its components are used for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serving.bundle import InputSpec
from serving.runtimes import Outputs
from training.classifier import Classifier, ServedGraph
from training.data import as_served
from training.progress import track

ECE_BINS = 15
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BATCH_PIXELS = 64 * 224 * 224  # a gigabyte of ResNet-18's activations


def run_graph(
    call: Callable[[NDArray[np.uint8]], Outputs], images: Tensor, spec: InputSpec | None = None, batch_size: int = 256
) -> Outputs:
    """Every output for every image.

    Args:
        call: answers one uint8 batch.
        images: uint8 (N, channels, H, W).
        spec: what `call` takes, if images of another size or with fewer channels are to be made into it.
        batch_size: at most; less where the images that `call` takes are large.
    """
    if spec is not None:
        batch_size = min(batch_size, max(1, BATCH_PIXELS // (spec.height * spec.width)))
    batches = track(images.split(batch_size), "evaluate")
    parts = [call((batch if spec is None else as_served(batch, spec)).numpy()) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def eager(classifier: Classifier, device: torch.device) -> Callable[[NDArray[np.uint8]], Outputs]:
    """A classifier as a callable for `run_graph`."""
    graph = ServedGraph(classifier).to(device).eval()

    @torch.inference_mode()
    def call(images: NDArray[np.uint8]) -> Outputs:
        outputs = graph(torch.from_numpy(images).to(device))
        return {name: out.cpu().numpy() for name, out in zip(graph.output_names, outputs, strict=True)}

    return call


def measure(outputs: Outputs, labels: Tensor) -> dict[str, Any]:
    """Metrics of a split, as they stand in a bundle.

    Args:
        outputs: of the split's images.
        labels: int64 (N,).

    Returns:
        images; accuracy; nll in nats; brier, the squared error summed over classes; ece over 15 bins of equal width;
        log_density, its mean in nats, and its quantiles by their shares, which tell a server what is usual; and for
        more than one component the occupancy per class (`occupancy_of`).
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    posterior = torch.from_numpy(outputs["posterior"]).double().clamp(0, 1)  # float32 may exceed 1
    classes = posterior.shape[1]
    one_hot = torch.nn.functional.one_hot(labels, classes)
    of_label = posterior[torch.arange(len(labels)), labels]
    ece = multiclass_calibration_error(posterior, labels, num_classes=classes, n_bins=ECE_BINS, norm="l1")
    metrics: dict[str, Any] = {
        "images": len(labels),
        "accuracy": round((posterior.argmax(1) == labels).double().mean().item(), 6),
        "nll": round(-of_label.clamp(min=torch.finfo(torch.float32).tiny).log().mean().item(), 6),
        "brier": round((posterior - one_hot).square().sum(1).mean().item(), 6),
        "ece": round(ece.item(), 6),
    }
    if "log_density" in outputs:
        density = outputs["log_density"].astype(np.float64)
        metrics["log_density"] = round(float(density.mean()), 4)
        metrics["log_density_quantiles"] = {str(q): round(float(np.quantile(density, q)), 4) for q in QUANTILES}
    if outputs.get("responsibilities", np.empty((0, 0, 1))).shape[2] > 1:
        metrics["occupancy"] = occupancy_of(outputs["responsibilities"], labels.numpy()).round(4).tolist()
    return metrics


def occupancy_of(responsibilities: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each class's images that its components take: (N, C, K) and (N,) to (C, K), rows summing to one."""
    classes, components = responsibilities.shape[1:]
    assigned = responsibilities[np.arange(len(labels)), labels].argmax(1)
    counts = np.zeros((classes, components))
    np.add.at(counts, (labels, assigned), 1)
    shares: NDArray[np.float64] = counts / counts.sum(1, keepdims=True).clip(min=1)
    return shares
