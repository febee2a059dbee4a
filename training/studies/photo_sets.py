"""What the study of photographs measures on: a folder of photos, cut by whoever made it, and CIFAR-10 scaled up.

photos = photos_in(setting, recipe, small)
for drawn in given(photos, draws_of(photos.train.labels, (5, 20), draws=5), recipe, setting):
    ...
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from serving.bundle import InputSpec
from training.data import DataError, Dataset, Sources, as_served
from training.datasets import load_dataset
from training.features import FeatureCache, as_images, features_of, open_features
from training.folders import OWN_SPLITS, list_folder
from training.image_files import in_memory
from training.images import Labelled
from training.recipe import DataSpec, Recipe
from training.studies.study import Setting
from training.train import backbone_alone


@dataclass(frozen=True)
class PhotoSet:
    """The images that are drawn from and those that are measured on, both as two recipes take them.

    Attributes:
        name: of the set.
        train, test: in the size that a backbone takes.
        small_train, small_test: the same images in that of a network that learns from scratch.
    """

    name: str
    train: Dataset
    test: Dataset
    small_train: Dataset
    small_test: Dataset


def photos_in(setting: Setting, recipe: Recipe, small: Recipe) -> PhotoSet:
    """The folder's train and test.

    Raises:
        DataError: if none is named, or it has no train and test, each with the same class folders.
    """
    listing = list_folder(setting.data)
    if not listing.test:
        raise DataError(
            f"--data must be a folder with train and test, each of class folders, got {listing.folder}, which has "
            "class folders alone: move some images of each class to test"
        )
    folder = listing.folder
    train, test = (_load(recipe.data, folder / part, setting.cache) for part in OWN_SPLITS)
    small_train, small_test = (_load(small.data, folder / part, setting.cache) for part in OWN_SPLITS)
    return PhotoSet(folder.resolve().name, train, test, small_train, small_test)


def cifar10(setting: Setting, recipe: Recipe, small: Recipe) -> PhotoSet:
    """CIFAR-10's own training and test images, scaled up as a server would."""
    whole = load_dataset(DataSpec(name="cifar10"), Sources(setting.data_root))
    assert whole.test_start is not None
    parts = torch.arange(len(whole.labels)).tensor_split([whole.test_start])
    (train, test), (small_train, small_test) = (
        [_cut(whole, positions, _input_of(one.data)) for positions in parts] for one in (recipe, small)
    )
    return PhotoSet("cifar10", train, test, small_train, small_test)


@dataclass(frozen=True)
class Given:
    """What every method gets of one draw.

    Attributes:
        size: images a class.
        seed: the number of the draw.
        train, test: features (N, P, 1, 1) of the drawn images and of the test images, as the backbone pools them.
        small_train, small_test: the same images as a network takes them that learns from scratch.
    """

    size: int
    seed: int
    train: Labelled
    test: Labelled
    small_train: Labelled
    small_test: Labelled


def given(photos: PhotoSet, draws: dict[int, list[Tensor]], recipe: Recipe, setting: Setting) -> Iterator[Given]:
    """The draws of every size; of the images to draw from, only those that a draw has go through the backbone.

    Args:
        photos: what is drawn from.
        draws: positions in `photos.train`, of each size.
        recipe: whose backbone it is.
        setting: where features are kept, and the device.
    """
    drawn = torch.cat([positions for of_size in draws.values() for positions in of_size]).unique()
    cache = _features_of(recipe, setting)
    features = as_images(features_of(cache, _chosen(photos.train, drawn)))
    test = Labelled(as_images(features_of(cache, photos.test)), photos.test.labels)
    small_test = _pixels(photos.small_test, setting)
    for size, of_size in draws.items():
        for seed, positions in enumerate(of_size):
            train = Labelled(features[torch.searchsorted(drawn, positions)], photos.train.labels[positions])
            small_train = _pixels(_chosen(photos.small_train, positions), setting)
            yield Given(size, seed, train, test, small_train, small_test)


def _features_of(recipe: Recipe, setting: Setting) -> FeatureCache:
    """What the recipe's backbone makes of images, before any square roots."""
    plain = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"power": False})})
    return open_features(backbone_alone(plain, Sources(), setting.device), setting.cache)


def _pixels(dataset: Dataset, setting: Setting) -> Labelled:
    """All images as a server hands them to the graph, on the device."""
    images = as_served(in_memory(dataset.images), dataset.input)
    return Labelled(images.to(setting.device), dataset.labels.to(setting.device))


def _chosen(dataset: Dataset, positions: Tensor) -> Dataset:
    return replace(dataset, images=dataset.images[positions], labels=dataset.labels[positions], files=())


def _load(spec: DataSpec, folder: Path, cache: Path) -> Dataset:
    return load_dataset(spec, Sources(folder=folder, cache=cache))


def _input_of(spec: DataSpec) -> InputSpec:
    return InputSpec(channels=spec.channels, height=spec.size, width=spec.size, resize=spec.resize)


def _cut(dataset: Dataset, positions: Tensor, spec: InputSpec) -> Dataset:
    return replace(_chosen(dataset, positions), input=spec, test_start=None)
