"""Examples of each component for its bundle: the training images nearest to it, and the mean of all of its images.

    found = find_examples(classifier, images, "nearest", torch.device("cpu"))
    info = write_examples(found, stage / "examples.zip")      # the file's layout is in serving/examples.py

Nearest is where the density of the component is highest, among the images of its class that belong to it; of copies one
is shown. Thumbnails are of at most 96 pixels a side, of fewer where so many components would take more than 8 MiB.
`means` shows no single training image: the mean of fewer than ten is left out.
"""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from serving.bundle import ExamplesInfo
from serving.examples import MAX_BYTES, entry_name
from training.classifier import Classifier
from training.components import Positions, of_own_class
from training.covariances import FloatArray
from training.evaluate import quickly, run_graph
from training.heads import DiscriminantHead
from training.image_files import Images
from training.images import LabelledImages, Streamed
from training.progress import track
from training.splits import stratified_order

NEAREST = 3
FEWEST_OF_A_MEAN = 10  # images
MOST_IMAGES = 20_000  # of more, a sample in which every class has its share
SIDES = (96, 64, 48, 32)  # pixels, tried in this order
LOSSLESS_SIDE = 32  # pixels; smaller images are kept as they are
QUALITY = 80  # of larger ones, in WebP
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can hold

WhichExamples = Literal["nearest", "means"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ComponentExamples:
    """What there is to see of one component.

    Attributes:
        label: position of its class.
        component: which of the class.
        mean: uint8 (channels, H, W); None if too few images belong to it.
        nearest: images likewise, the nearest first.
    """

    label: int
    component: int
    mean: Pixels | None
    nearest: tuple[Pixels, ...]

    def entries(self) -> Iterator[tuple[str, Pixels]]:
        """The names of its entries in the file, and what is in them."""
        if self.mean is not None:
            yield entry_name(self.label, self.component, None), self.mean
        for number, pixels in enumerate(self.nearest, start=1):
            yield entry_name(self.label, self.component, number), pixels


def find_examples(
    classifier: Classifier, images: LabelledImages, which: WhichExamples, device: torch.device
) -> list[ComponentExamples]:
    """Find the examples of every component among the training images, at most 20,000 of them.

    Args:
        classifier: a finished one.
        images: those that it was trained on.
        which: `nearest` for means and nearest images, `means` for means alone.
        device: where the network runs.

    Raises:
        ValueError: if the head has no components that images could be near to.
    """
    head, train = classifier.head, images.streamed("train")
    if not isinstance(head, DiscriminantHead):
        raise ValueError(f"examples must be of a head with densities, lda or mda, got {head.kind}")
    chosen = stratified_order(train.labels, seed=0)[:MOST_IMAGES].sort().values
    shown = Streamed(train.images[chosen], train.labels[chosen])
    outputs = run_graph(quickly(classifier, device), shown.images, images.dataset.input)
    labels, features = shown.labels.numpy(), outputs["features"].astype(np.float64)
    joints = of_own_class(head, features, labels)
    of_components = [(label, k) for label in range(head.classes) for k in range(head.components)]
    most = NEAREST if which == "nearest" else 0
    return [
        _example(shown.images, label, k, _members(joints, labels, label, k), most)
        for label, k in track(of_components, "examples of components")
    ]


def write_examples(found: list[ComponentExamples], file: Path) -> ExamplesInfo:
    """Write a bundle's file of examples, the same bytes for the same examples, and say what is in it.

    Raises:
        ValueError: if they take more than 8 MiB even as the smallest thumbnails.
    """
    images = dict(entry for one in found for entry in one.entries())
    for side in SIDES:
        whole = _zipped({name: thumbnail(pixels, side) for name, pixels in images.items()})
        if len(whole) <= MAX_BYTES:
            file.write_bytes(whole)
            largest = max((max(pixels.shape[1:]) for pixels in images.values()), default=1)
            return ExamplesInfo(nearest=max(len(one.nearest) for one in found), side=min(side, largest))
    raise ValueError(
        f"examples must take at most {MAX_BYTES} bytes, got {len(whole)} for {len(images)} thumbnails of {SIDES[-1]} "
        "pixels: --examples means has fewer of them"
    )


def thumbnail(pixels: Pixels, side: int) -> bytes:
    """A WebP image of at most `side` pixels a side, of pixels (channels, H, W); small ones are kept without loss."""
    rows = pixels.transpose(1, 2, 0)
    image = Image.fromarray(rows[:, :, 0] if rows.shape[2] == 1 else rows)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=max(image.size) <= LOSSLESS_SIDE, quality=QUALITY, method=6)
    return out.getvalue()


def _members(joints: FloatArray, labels: Positions, label: int, component: int) -> Positions:
    """Positions of the images that belong to a component, those where it is densest first."""
    own = np.flatnonzero((labels == label) & (joints.argmax(1) == component))
    return own[np.argsort(-joints[own, component], kind="stable")]


def mean_image(images: Images, members: Positions) -> Pixels | None:
    """The mean of the images at some positions, pixel by pixel; None of so few that it would show one of them."""
    if len(members) < FEWEST_OF_A_MEAN:
        return None
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    for batch in images[torch.from_numpy(np.sort(members))].split(64):
        total += batch.double().sum(0)
    mean: Pixels = (total / len(members)).round().byte().numpy()
    return mean


def _example(images: Images, label: int, component: int, members: Positions, most: int) -> ComponentExamples:
    return ComponentExamples(label, component, mean_image(images, members), tuple(_different(images, members, most)))


def _different(images: Images, ranked: Positions, most: int) -> Iterator[Pixels]:
    """The first images in an order, but for copies of those before."""
    seen: set[bytes] = set()
    for position in ranked:
        if len(seen) == most:
            return
        (image,) = next(iter(images[torch.tensor([position])].split(1)))
        pixels = image.numpy()
        if pixels.tobytes() not in seen:
            seen.add(pixels.tobytes())
            yield pixels


def _zipped(entries: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as out:
        for name, content in entries.items():
            out.writestr(zipfile.ZipInfo(name, DATE), content)
    return whole.getvalue()
