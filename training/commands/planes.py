"""The command that gives a bundle its feature plane: plane."""

from pathlib import Path
from typing import Annotated

import typer

from serving.bundle import PLANE, Bundle
from training.commands.options import DataRootOption, FolderOption
from training.data import Sources
from training.images import images_of_bundle
from training.plane import add_plane
from training.progress import say


def plane(
    bundle: Annotated[Path, typer.Argument(help="A bundle: model_store/<name>/<version>.")],
    data_root: DataRootOption = Path("data"),
    data: FolderOption = None,
) -> None:
    """Give a bundle the feature plane that an export of today has: where held-out images and the components lie.

    Only plane.npz and bundle.json are written anew: the model stays the same. A plane that is there is replaced.

    Example: python -m training plane model_store/mnist-mda/1
    """
    images = images_of_bundle(bundle, Bundle.load(bundle).manifest, Sources(data_root, data))
    info = add_plane(bundle, images)
    share = "" if info.explained is None else f", with {info.explained:.0%} of the variance of the features"
    say(f"written: {bundle / PLANE}, {info.images} images{share}")
