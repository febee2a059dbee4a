"""How good a classifier is on a split: accuracy, NLL, Brier score, ECE, AURC, and what its components are used for.

The NLL is worked out in float64 from the log-posterior, which a classifier has (`eager`). An exported graph answers the
posterior alone; float32 holds no probability below 1e-45 and some runtimes none below 1e-38.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serving.bundle import InputSpec
from serving.runtimes import Outputs
from training.backbones import backbone_of
from training.calibration_error import calibration_error, confidences, equal_mass_bins, equal_width_bins
from training.classifier import Classifier, ServedGraph
from training.data import as_served
from training.extraction import open_extractor
from training.features import head_stage
from training.image_files import Images, images_at_once
from training.progress import track
from training.selective import aurc, excess_aurc

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def run_graph(
    call: Callable[[NDArray[np.uint8]], Outputs], images: Images, spec: InputSpec | None = None, batch_size: int = 256
) -> Outputs:
    """Every output for every image.

    Args:
        call: answers one uint8 batch.
        images: uint8 (N, channels, H, W), or files that become this.
        spec: what `call` takes, if images of another size or with fewer channels are to be made into it.
        batch_size: at most; less where the images that `call` takes are large.
    """
    if spec is not None:
        batch_size = images_at_once(spec, batch_size)
    batches = track(images.split(batch_size), "evaluate", total=math.ceil(len(images) / batch_size))
    parts = [call((batch if spec is None else as_served(batch, spec)).numpy()) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def eager(
    classifier: Classifier, device: torch.device, *, pooled: bool = False
) -> Callable[[NDArray[np.uint8]], Outputs]:
    """A classifier as a callable for `run_graph`: what its graph answers, and log_posterior, float64 (N, C).

    With `pooled` also the trunk's features by this name, float32 (N, P).
    """
    graph = ServedGraph(classifier).to(device).eval()

    @torch.inference_mode()
    def call(images: NDArray[np.uint8]) -> Outputs:
        made: list[Tensor] = []
        with _inputs_of(classifier.encoder.projection, made) if pooled else nullcontext():
            outputs = graph(torch.from_numpy(images).to(device))
        answers = dict(zip(graph.output_names, outputs, strict=True))
        if pooled:
            answers["pooled"] = made[0]
        log_joints = classifier.head(answers["features"]).log_joints.double()
        answers["log_posterior"] = classifier.calibrated(log_joints).log_softmax(1)
        return {name: out.cpu().numpy() for name, out in answers.items()}

    return call


def _inputs_of(module: nn.Module, found: list[Tensor]) -> AbstractContextManager[Any]:
    """Puts what a module is called with into `found`."""
    return module.register_forward_pre_hook(lambda _, inputs: found.extend(inputs))


def quickly(
    classifier: Classifier, device: torch.device, *, pooled: bool = False
) -> Callable[[NDArray[np.uint8]], Outputs]:
    """The same as `eager`, but on a CPU a pretrained trunk runs as for the training of its head, which is quicker."""
    if device.type != "cpu" or backbone_of(classifier.architecture.encoder.kind) is None:
        return eager(classifier, device, pooled=pooled)
    extract, rest = open_extractor(classifier, device), eager(head_stage(classifier), device, pooled=pooled)

    def call(images: NDArray[np.uint8]) -> Outputs:
        features: NDArray[Any] = extract(torch.from_numpy(images))
        return rest(features[:, :, None, None])

    return call


def nll_of_images(outputs: Outputs, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Negative log-likelihood of each image in nats, (N,).

    From log_posterior if it is there; else from the posterior, where a probability below the smallest normal float32 is
    taken for that, so that no image counts more than 87.3 nats.
    """
    each = np.arange(len(labels))
    if "log_posterior" in outputs:
        nll: NDArray[np.float64] = -outputs["log_posterior"][each, labels]
    else:
        of_label = outputs["posterior"].astype(np.float64).clip(np.finfo(np.float32).tiny, 1)
        nll = -np.log(of_label[each, labels])
    return nll


def measure(outputs: Outputs, labels: Tensor) -> dict[str, Any]:
    """Metrics of a split, as they stand in a bundle.

    Args:
        outputs: of the split's images.
        labels: int64 (N,).

    Returns:
        images; accuracy; nll in nats (see `nll_of_images`); brier, the squared error summed over classes; ece over 15
        bins of equal width, ece_equal_mass over 15 of equal mass; aurc and e_aurc (training/selective.py);
        log_density, its mean in nats, and its quantiles by their shares, which tell a server what is usual; and for
        more than one component the occupancy per class (`occupancy_of`).
    """
    truth = labels.numpy()
    posterior = outputs["posterior"].astype(np.float64).clip(0, 1)  # float32 may exceed 1
    confidence, right = confidences(posterior, truth)
    squared = np.square(posterior - np.eye(posterior.shape[1])[truth]).sum(1)
    metrics: dict[str, Any] = {
        "images": len(truth),
        "accuracy": round(float(right.mean()), 6),
        "nll": round(float(nll_of_images(outputs, truth).mean()), 6),
        "brier": round(float(squared.mean()), 6),
        "ece": round(calibration_error(confidence, right, equal_width_bins(confidence)), 6),
        "ece_equal_mass": round(calibration_error(confidence, right, equal_mass_bins(confidence)), 6),
        "aurc": round(aurc(confidence, right), 6),
        "e_aurc": round(excess_aurc(confidence, right), 6),
    }
    return metrics | _density_figures(outputs, truth)


def _density_figures(outputs: Outputs, labels: NDArray[np.int64]) -> dict[str, Any]:
    """What only a head with densities or components has."""
    metrics: dict[str, Any] = {}
    if "log_density" in outputs:
        density = outputs["log_density"].astype(np.float64)
        metrics["log_density"] = round(float(density.mean()), 4)
        metrics["log_density_quantiles"] = {str(q): round(float(np.quantile(density, q)), 4) for q in QUANTILES}
    if outputs.get("responsibilities", np.empty((0, 0, 1))).shape[2] > 1:
        metrics["occupancy"] = occupancy_of(outputs["responsibilities"], labels).round(4).tolist()
    return metrics


def occupancy_of(responsibilities: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each class's images that its components take: (N, C, K) and (N,) to (C, K), rows summing to one."""
    classes, components = responsibilities.shape[1:]
    assigned = responsibilities[np.arange(len(labels)), labels].argmax(1)
    counts = np.zeros((classes, components))
    np.add.at(counts, (labels, assigned), 1)
    shares: NDArray[np.float64] = counts / counts.sum(1, keepdims=True).clip(min=1)
    return shares
