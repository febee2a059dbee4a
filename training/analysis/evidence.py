"""What a finished network says of its run's images, computed once for every statistic of a report.

    evidence = gather(Run.open(Path("runs/digits-mda/demo")), Sources(), torch.device("cpu"))

`evidence.test` are the answers for the whole test split, `evidence.train` those for a sample of the training images.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serving.bundle import InputSpec
from serving.held_out import HeldOut
from serving.runtimes import Outputs
from training.classifier import Classifier
from training.data import Dataset, Sources
from training.evaluate import measure, quickly, run_graph
from training.image_files import Images
from training.images import images_of
from training.run import Run

SAMPLE = 20_000  # training images; on two cores the six convolutions take a minute for as many
FEWEST_OF_A_CLASS = 50  # kept of every class that has them, however small its share

Labels = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """Images with labels, and a network's outputs for them.

    Attributes:
        images: uint8 (N, channels, H, W), or files that become this.
        labels: (N,).
        outputs: as `evaluate.run_graph` gives them, the pooled features too.
    """

    images: Images
    labels: Labels
    outputs: Outputs

    @property
    def features(self) -> FloatArray:
        """What the head sees, (N, D)."""
        return self.outputs["features"].astype(np.float64)

    @property
    def pooled(self) -> FloatArray:
        """What the trunk makes of them, before any projection, (N, P)."""
        return self.outputs["pooled"].astype(np.float64)


@dataclass(frozen=True)
class Evidence:
    """A run's network on its own images.

    Attributes:
        run: the run.
        classifier: its network, on the CPU.
        dataset: all images.
        train: a sample of the training split, or all of it.
        test: the test split.
        held_out: what held-out images were answered; None if there are none.
    """

    run: Run
    classifier: Classifier
    dataset: Dataset
    train: Answers
    test: Answers
    held_out: HeldOut | None = None


def gather(run: Run, sources: Sources, device: torch.device, sample: int = SAMPLE) -> Evidence:
    """Run a finished network over its test split and over at most about `sample` training images.

    Raises:
        RunError: if the run is not finished or the images are not those that it was trained on.
        DataError: if the images are not there.
        ValueError: if `sample` is less than one.
    """
    classifier, images = run.load_classifier(), images_of(run, sources)
    training, test = (images.streamed(name) for name in ("train", "test"))
    chosen = torch.from_numpy(stratified(training.labels.numpy(), sample, run.recipe.seed))
    return Evidence(
        run,
        classifier,
        images.dataset,
        answers_of(classifier, training.images[chosen], training.labels[chosen], images.dataset.input, device),
        answers_of(classifier, test.images, test.labels, images.dataset.input, device),
    )


def measure_run(run: Run, sources: Sources, device: torch.device) -> dict[str, Any]:
    """What `evaluate.measure` says of a finished run on its test split.

    Raises:
        RunError: if the run is not finished or the images are not those that it was trained on.
        DataError: if the images are not there.
    """
    classifier, images = run.load_classifier(), images_of(run, sources)
    test = images.streamed("test")
    return measure(run_graph(quickly(classifier, device), test.images, images.dataset.input), test.labels)


def answers_of(
    classifier: Classifier, images: Images, labels: Tensor, spec: InputSpec, device: torch.device
) -> Answers:
    """A network's outputs for images, made into what it takes (`spec`) and computed on `device`; it ends on the CPU."""
    outputs = run_graph(quickly(classifier, device, pooled=True), images, spec)
    classifier.cpu()
    return Answers(images, labels.numpy(), outputs)


def stratified(labels: Labels, sample: int, seed: int) -> NDArray[np.int64]:
    """Positions of about `sample` images, every class in its share, in ascending order.

    A class keeps 50 images, or all that it has if they are fewer, even where its share is less.

    Raises:
        ValueError: if `sample` is less than one.
    """
    if sample < 1:
        raise ValueError(f"sample must be at least 1, got {sample}")
    if sample >= len(labels):
        return np.arange(len(labels))
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(round(len(members) * sample / len(labels)), min(len(members), FEWEST_OF_A_CLASS))
        chosen.append(generator.choice(members, count, replace=False))
    return np.sort(np.concatenate(chosen))


@torch.no_grad()
def log_joints_of_features(classifier: Classifier, features: FloatArray, batch_size: int = 256) -> FloatArray:
    """Log-joints, or logits, (N, C) of features (N, D): the head's own, before any temperature."""
    batches = torch.from_numpy(features).float().split(batch_size)
    scores: FloatArray = torch.cat([classifier.head(batch).log_joints for batch in batches]).double().numpy()
    return scores
