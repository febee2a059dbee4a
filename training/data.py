"""A data set, as uint8 tensors or as files, and batches made on the device.

training/datasets.py has the data sets themselves, training/splits.py how they are cut.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from serving.bundle import InputSpec
from serving.preprocess import to_input
from training.image_files import ImageFiles, Images, in_memory

if TYPE_CHECKING:
    from training.features import FeatureCache


class DataError(ValueError):
    """Images that are not where they should be, or not what they should be."""


@dataclass(frozen=True)
class Sources:
    """Where data sets lie, `root` for torchvision's and `folder` for the user's own, and what frozen backbones need.

    `features` are made of a folder's images in the same pass that reads them for the first time.
    """

    root: Path = Path("data")
    folder: Path | None = None
    weights: Path | None = None  # of the backbone; its library's download if there are none
    cache: Path = Path("cache")  # of a folder's index and of the backbone's features
    features: "FeatureCache | None" = None


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    Attributes:
        images: uint8 (N, channels, height, width), or files that become this.
        labels: int64 (N,), positions in `classes`.
        classes: class names.
        test_start: position of the first image of the data set's own test split, which reaches to the end, if any.
        input: how an image file becomes what the classifier sees; `images` may be of another size (`as_served`).
        files: where the images were, inside the user's folder; none if they are not from one.
    """

    name: str
    images: Images
    labels: Tensor
    classes: tuple[str, ...]
    input: InputSpec
    test_start: int | None = None
    files: tuple[str, ...] = field(default=(), repr=False)

    def name_of(self, position: int) -> str:
        """What a person may find an image by."""
        if self.files:
            return self.files[position]
        return f"image {position} ({self.classes[int(self.labels[position])]})"

    def fingerprint(self) -> str:
        """SHA-256 over the pixels, or over the digests of those that are in files, and the labels."""
        images = self.images
        contents = images.digests if isinstance(images, ImageFiles) else images.contiguous().numpy()
        sha = hashlib.sha256(np.ascontiguousarray(contents).data)
        sha.update(self.labels.contiguous().numpy().data)
        return sha.hexdigest()


def batch_count(count: int, batch_size: int) -> int:
    """How many batches an epoch has; a last one of a single image, which batch norm refuses, is left out."""
    full, rest = divmod(count, batch_size)
    return full + (rest > 1 or count == 1)


def batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled positions 0..count-1 in `batch_count` batches."""
    yield from torch.randperm(count, generator=generator).split(batch_size)[: batch_count(count, batch_size)]


def as_served(images: Tensor, spec: InputSpec) -> Tensor:
    """Images as a server hands them to the graph: gray ones in three equal channels, then resized; on the CPU."""
    if images.shape[1:] == (spec.channels, spec.height, spec.width):
        return images
    if images.shape[1] == 1:
        images = images.expand(-1, spec.channels, -1, -1)
    return torch.from_numpy(np.stack([to_input(image.permute(1, 2, 0).numpy(), spec) for image in images]))


def write_samples(dataset: Dataset, folder: Path, count: int, seed: int) -> list[Path]:
    """Write `count` PNG files named <position>-<label>.png, from the data set's own test split if it has one."""
    first = dataset.test_start or 0
    order = torch.randperm(len(dataset.labels) - first, generator=torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for position in (order[:count] + first).tolist():
        label = re.sub(r"[^A-Za-z0-9_.]+", "-", dataset.classes[int(dataset.labels[position])])
        pixels = in_memory(dataset.images[torch.tensor([position])])[0].permute(1, 2, 0).squeeze(2).numpy()
        files.append(folder / f"{position:05d}-{label}.png")
        Image.fromarray(pixels).save(files[-1])
    return files
