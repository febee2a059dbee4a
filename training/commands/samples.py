"""The command that writes images to classify: samples."""

from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import DataRootOption
from training.data import DataError, Sources, write_samples
from training.datasets import PUBLIC, load_dataset
from training.photos import PHOTOS, write_photos
from training.progress import say
from training.recipe import DataSpec


def samples(
    dataset: Annotated[str, typer.Argument(help=f"{', '.join(PUBLIC)} or photos.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 10,
    seed: Annotated[int, typer.Option(help="Which images.")] = 0,
    data_root: DataRootOption = Path("data"),
) -> None:
    """Write images of a data set as PNG files named <position>-<label>.png, to have something to classify.

    Where the data set has a test split of its own, they are from there. "photos" are the few in scikit-learn and
    scikit-image, as they are and named after what they show.
    """
    if dataset == "photos":
        files = write_photos(out, list(PHOTOS)[:count])
    elif dataset in PUBLIC:
        files = write_samples(load_dataset(DataSpec(name=dataset), Sources(data_root)), out, count, seed)
    else:
        raise DataError(f"dataset must be one of {', '.join(PUBLIC)}, photos, got {dataset!r}")
    for file in files:
        say(str(file))
