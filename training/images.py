"""The images of a training: a data set with its splits, where it is, and a part of it on a device.

images = load_images(recipe, Sources())
train = images.part("train", torch.device("cpu"))
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from serving.bundle import Manifest
from training.backbones import backbone_input, backbone_of
from training.data import DataError, Dataset, Sources
from training.datasets import load_dataset
from training.image_files import Images, in_memory
from training.recipe import Recipe, recorded_recipe
from training.run import Run
from training.splits import Splits, split


@dataclass(frozen=True)
class Streamed:
    """Images uint8 (N, channels, H, W), which may be in files, and labels int64 (N,) on the CPU."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Labelled(Streamed):
    """Images uint8 (N, channels, H, W) and labels int64 (N,) in the memory of one device."""

    images: Tensor


@dataclass(frozen=True)
class LabelledImages:
    """A data set with its splits."""

    dataset: Dataset
    splits: Splits

    def counts(self) -> dict[str, int]:
        """How many images are in each split."""
        return {name: len(positions) for name, positions in self.splits.items()}

    def part(self, name: str, device: torch.device) -> Labelled:
        """One split, all of it in a device's memory.

        Raises:
            DataError: if there is no such split.
        """
        part = self.streamed(name)
        return Labelled(in_memory(part.images).to(device), part.labels.to(device))

    def streamed(self, name: str) -> Streamed:
        """One split, its images where they are.

        Raises:
            DataError: if there is no such split.
        """
        if name not in self.splits:
            raise DataError(f"split must be one of {', '.join(self.splits)}, got {name!r}")
        positions = self.splits[name]
        return Streamed(self.dataset.images[positions], self.dataset.labels[positions])


def load_images(recipe: Recipe, sources: Sources) -> LabelledImages:
    """The recipe's data set, cut as the recipe says."""
    dataset, spec = _dataset_of(recipe, sources), recipe.data
    cut = split(
        dataset,
        validation=spec.validation,
        test=spec.test,
        seed=recipe.seed,
        split_seed=spec.split_seed,
        held_out=recipe.held_out_share,
    )
    return LabelledImages(dataset, cut)


def images_of(run: Run, sources: Sources) -> LabelledImages:
    """The images that a run was trained on, with their splits.

    Raises:
        RunError: if they are others now.
        DataError: if they are not there.
    """
    dataset = _dataset_of(run.recipe, sources)
    run.require_same_images(dataset)
    return LabelledImages(dataset, run.splits())


def images_of_bundle(folder: Path, manifest: Manifest, sources: Sources) -> LabelledImages:
    """The images that a bundle was trained and measured on, with their splits.

    Raises:
        DataError: if they are others now, are not there, or are cut otherwise.
    """
    images = load_images(recorded_recipe(manifest.recipe), sources)
    if images.dataset.fingerprint() != manifest.dataset.fingerprint:
        raise DataError(f"images must be those that {folder} was trained and measured on, got others")
    if images.counts() != manifest.dataset.splits:
        raise DataError(f"splits of {folder} must be {manifest.dataset.splits}, got {images.counts()}: train it anew")
    return images


def _dataset_of(recipe: Recipe, sources: Sources) -> Dataset:
    dataset = load_dataset(recipe.data, sources)
    if (backbone := backbone_of(recipe.encoder.kind)) is not None:
        dataset = replace(dataset, input=backbone_input(dataset.input, backbone.side_seen(recipe.encoder.side)))
    return dataset


def sources_of(run: Run, data_root: Path, folder: Path | None = None, weights: Path | None = None) -> Sources:
    """Where a run's images and weights are: `folder` and `weights` if given, else those that the run was begun with."""
    description = (run.start or run).description()
    if folder is None and (recorded := description.get("folder")):
        folder = Path(recorded)
    if weights is None and (recorded := description.get("weights_file")):
        weights = Path(recorded)
    return Sources(data_root, folder, weights)
