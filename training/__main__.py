"""The command line of training: python -m training --help."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from serving.errors import ServingError
from training import recipe as recipes
from training.data import DataError, Sources

from training.fit import DivergedError
from training.recipe import Recipe, RecipeError
from training.run import Run, RunError
from training.train import choose_device, sources_of, train

app = typer.Typer(
    help="Train image classifiers with generative heads and export them as bundles.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)

DataRoot = Annotated[Path, typer.Option(help="Folder of fashion-mnist, cifar10 and cifar100, as torchvision lays them out.")]
Folder = Annotated[Path | None, typer.Option("--data", help="Your own images: a folder with one folder of images a class.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", metavar="auto|cpu|cuda")]


@app.command("recipes")
def list_recipes() -> None:
    """List the recipes that come with the project."""
    table = Table("recipe", "data", "encoder", "head", "loss", "refit", "epochs", box=None)
    for name in recipes.recipe_names():
        _, recipe = recipes.load_recipe(name)
        table.add_row(
            name, recipe.data.name, recipe.encoder.kind, recipe.head.kind, recipe.loss.kind,
            _refit_in_words(recipe), str(recipe.fit.epochs),
        )  # fmt: skip
    console.print(table)
    console.print("\nTrain one with: python -m training train RECIPE")


@app.command("train")
def train_command(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's name, or a TOML file.")] = None,
    data_root: DataRoot = Path("data"),
    data: Folder = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's fit.epochs.")] = None,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's seed.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value, such as fit.lr=0.01; repeatable.")] = None,
    run_id: Annotated[str | None, typer.Option("--id", help="Name of the run; the time if left out.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run after its newest checkpoint.")] = None,
) -> None:
    """Train a recipe into runs/<recipe>/<id>/, or --resume a run.

    Example: python -m training train mnist-mda --data photos/ --set data.size=64
    """
    chosen = choose_device(device)
    if resume is not None:
        if recipe or overrides or epochs is not None or seed is not None:
            raise typer.BadParameter("--resume takes the run's own recipe: leave RECIPE, --set, --epochs and --seed out")
        run = Run.open(resume)
        sources = sources_of(run, data_root, data)
    else:
        if recipe is None:
            raise typer.BadParameter("name a RECIPE (python -m training recipes lists them) or a run to --resume")
        run = Run.create(*_resolve(recipe, data, epochs, seed, overrides or []), run_id)
        sources = Sources(data_root, data)
    console.print(f"training {run.name} into {run.path}")
    train(run, sources, chosen)
    console.print(f"finished: export it with  python -m training export {run.path}")


def _resolve(
    name_or_file: str, data: Path | None, epochs: int | None, seed: int | None, overrides: list[str]
) -> tuple[str, Recipe]:
    """The recipe with the command line's options written into it."""
    extra = list(overrides)
    if data is not None:
        extra.append("data.name=folder")
    if epochs is not None:
        extra.append(f"fit.epochs={epochs}")
    if seed is not None:
        extra.append(f"seed={seed}")
    return recipes.load_recipe(name_or_file, extra)


def _refit_in_words(recipe: Recipe) -> str:
    if recipe.refit is None:
        return ""
    return f"{recipe.refit.head}, K={recipe.refit.components}, {recipe.refit.covariance}"


def main() -> None:
    """Run the command line; expected errors become one line and exit code 1."""
    try:
        app()
    except (DataError, DivergedError, RecipeError, RunError, ServingError, ValueError) as exc:
        Console(stderr=True, highlight=False).print(f"[red]error:[/] {exc}", markup=True)
        raise SystemExit(1) from exc


if __name__ == "__main__":
    main()
