"""What every study takes and gives."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from training.digests import digest_of, recipe_digest
from training.files import replace_text
from training.images import LabelledImages, images_of, sources_of
from training.recipe import Recipe, load_recipe
from training.run import RUNS, Run, RunError


@dataclass(frozen=True)
class Setting:
    """Where a study takes its runs and images from and where it writes to.

    Attributes:
        out: folder of the pictures and the JSON.
        device: what the models run on.
        runs: finished runs; without any the newest that suit.
        data_root: folder of torchvision's data sets.
        folder: of runs; where the newest are looked for.
        data: the user's own photos, for the study that takes some.
        cache: of a folder's index, of features and of what took long.
    """

    out: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    runs: tuple[Path, ...] = ()
    data_root: Path = Path("data")
    folder: Path = RUNS
    data: Path | None = None
    cache: Path = Path("cache")

    def run(self, position: int, recipe: str, count: int = 1) -> Run:
        """The run at a position of `runs`, or the newest finished one of a recipe.

        Args:
            position: from 0.
            recipe: a recipe's name.
            count: how many runs the study takes.

        Raises:
            RunError: saying how to train one.
        """
        if len(self.runs) not in (0, count):
            raise RunError(f"--run must be given {count} times or not at all, got {len(self.runs)} times")
        return Run.open(self.runs[position]) if self.runs else newest(recipe, self.folder)

    def images_of(self, run: Run) -> LabelledImages:
        """The images that a run was trained and measured on, with their splits.

        Raises:
            RunError: if they are others now.
        """
        return images_of(run, sources_of(run, self.data_root))


def of_recipes(names: Sequence[str]) -> str:
    """The digest of what these recipes train today."""
    return of_runs([(name, load_recipe(name)[1]) for name in names])


def of_runs(recipes: Sequence[tuple[str, Recipe]]) -> str:
    """The digest of what runs of these recipes, each with its name, have trained."""
    return digest_of([[name, recipe_digest(recipe)] for name, recipe in recipes])


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Attributes:
        figures: plain values, as they are written to JSON and recorded.
        table: the same for a person.
        made_from: the digest of the recipes or parameters that decide the figures.
        files: the pictures.
        note: a sentence to read the table with.
    """

    figures: dict[str, Any]
    table: Table
    made_from: str
    files: tuple[Path, ...] = ()
    note: str = ""

    def write(self, out: Path, name: str) -> Path:
        """Write the figures to <out>/<name>.json."""
        out.mkdir(parents=True, exist_ok=True)
        file = out / f"{name}.json"
        replace_text(file, json.dumps(self.figures, indent=2) + "\n")
        return file


def newest(recipe: str, folder: Path = RUNS) -> Run:
    """The finished run of a recipe whose classifier was written last.

    Raises:
        RunError: if there is none.
    """
    finished = sorted((folder / recipe).glob("*/classifier.pt"), key=lambda file: file.stat().st_mtime)
    if not finished:
        raise RunError(
            f"{recipe} must have a finished run, got none in {folder / recipe}: train one with  "
            f"python -m training train {recipe}  or name another with --run"
        )
    return Run.open(finished[-1].parent)
