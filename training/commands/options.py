"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from training.results import require_project


def _checked(record: bool) -> bool:
    if record:
        require_project()
    return record


DataRootOption = Annotated[
    Path, typer.Option(help="Folder of fashion-mnist, cifar10 and cifar100, as torchvision lays them out.")
]
FolderOption = Annotated[
    Path | None, typer.Option("--data", help="Your own images: a folder with one folder of images a class.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.", metavar="auto|cpu|cuda")]
RecordOption = Annotated[
    bool,
    typer.Option("--record", callback=_checked, help="Write the figures into docs/results.json and the README."),
]
