"""The command line of training: python -m training --help."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from serving.bundle import MANIFEST, NAME_PATTERN, Bundle, VariantPrecision
from serving.errors import ServingError
from serving.runtimes import open_runtime
from training import recipe as recipes
from training.choice import chosen_recipe
from training.commands import abstention, experiments, naming, planes, reports, samples
from training.commands.options import DataRootOption, DeviceOption, FolderOption
from training.commands.shown import show_costs, show_metrics
from training.component_names import names_for_run
from training.data import DataError, Sources
from training.devices import choose_device
from training.evaluate import measure, quickly, run_graph
from training.examples import WhichExamples
from training.export import ParityError, export
from training.fit import DivergedError
from training.images import LabelledImages, images_of_bundle, load_images, sources_of
from training.progress import console, say, warn
from training.recipe import Recipe, recorded_recipe
from training.run import Run
from training.train import train
from training.variants import renew_variants
from training.weights import require_weights

OTHER_IMAGES = "these are not the images that the model was trained and measured on"

app = typer.Typer(
    help="Train image classifiers with generative heads and export them as bundles.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("recipes")
def list_recipes() -> None:
    """List the recipes that come with the project."""
    table = Table(Column("recipe", no_wrap=True), "model", "loss", "refit", "epochs", box=None)
    for name in recipes.recipe_names():
        _, recipe = recipes.load_recipe(name)
        model = f"{recipe.encoder.kind} · {recipe.head.kind}"
        table.add_row(name, model, recipe.loss.kind, _refit_in_words(recipe), str(recipe.fit.epochs))
    console.print(table)
    console.print("\nTrain one with: python -m training train RECIPE")


@app.command("train")
def train_command(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's name or TOML file; not needed with --data.")] = None,
    data_root: DataRootOption = Path("data"),
    data: FolderOption = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's fit.epochs.")] = None,
    device: DeviceOption = "auto",
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's seed.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, such as fit.lr=0.01; repeatable.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="A backbone's weights (.pth, .safetensors), instead of its package's or a download."),
    ] = None,
    run_id: Annotated[str | None, typer.Option("--id", help="Name of the run; the time if left out.")] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Take the epochs of this run; only the recipe's refit and calibration may differ."),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run after its newest checkpoint.")] = None,
) -> None:
    """Train a recipe into runs/<recipe>/<id>/, or --resume a run.

    Example: python -m training train digits-mda --id three --set refit.components=3
    """
    chosen = choose_device(device)
    if resume is not None:
        if recipe or overrides or epochs is not None or seed is not None or run_id or start:
            raise typer.BadParameter(
                "--resume takes a run as it is: leave RECIPE, --set, --epochs, --seed, --id and --from out"
            )
        run = Run.open(resume)
    else:
        if recipe is None:
            if data is None:
                raise typer.BadParameter("name a RECIPE (python -m training recipes lists them) or a run to --resume")
            recipe = chosen_recipe(data)
        name, resolved = _resolve(recipe, data, epochs, seed, overrides or [])
        require_weights(resolved.encoder.kind, weights)
        run = Run.create(name, resolved, run_id, start=Run.open(start) if start else None)
    train(run, sources_of(run, data_root, data, weights), chosen)
    say(f"finished: export it with  python -m training export {run.path}")


@app.command("evaluate")
def evaluate_command(
    target: Annotated[
        Path, typer.Argument(help="A run (runs/<recipe>/<id>) or a bundle (model_store/<name>/<version>).")
    ],
    split: Annotated[str, typer.Option(help="train, validation or test.", metavar="train|validation|test")] = "test",
    data_root: DataRootOption = Path("data"),
    data: FolderOption = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a run's classifier, or a bundle's ONNX graph, on a split: accuracy, NLL, Brier score, ECE, AURC.

    Example: python -m training evaluate model_store/mnist-mda/1
    """
    chosen = choose_device(device)
    if (target / MANIFEST).is_file():
        bundle = Bundle.load(target)
        call, images = open_runtime(bundle, "onnx", str(chosen), None), _images_of_bundle(bundle, data_root, data)
        names = bundle.manifest.component_names
    else:
        run = Run.open(target)
        call, images = quickly(run.load_classifier(), chosen), _images_of_run(run, data_root, data)
        names = {}
    part = images.streamed(split)
    if not len(part):
        raise DataError(f"split must have images, got {split}, which is empty in this recipe")
    metrics = {"split": split, **measure(run_graph(call, part.images, images.dataset.input), part.labels)}
    show_metrics(metrics, images.dataset.classes, as_json, names)


@app.command("export")
def export_command(
    run: Annotated[
        Path, typer.Argument(help="A finished run (runs/<recipe>/<id>), or a bundle whose variants are made anew.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the model; the recipe's if left out.")] = None,
    version: Annotated[int, typer.Option(min=1, help="Version of the model.")] = 1,
    model_store: Annotated[Path, typer.Option(help="Folder of bundles.")] = Path("model_store"),
    replace: Annotated[bool, typer.Option(help="Put it in the place of a bundle that is there.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Add a graph with convolutions in 8 bits, several times as fast on a CPU.")
    ] = False,
    float16: Annotated[
        bool, typer.Option("--float16", help="Add a graph in 16 bits but for its head, for GPUs.")
    ] = False,
    names: Annotated[
        Path | None, typer.Option(help="Names of components: a TOML file, or a bundle that has them.")
    ] = None,
    examples: Annotated[
        WhichExamples | None,
        typer.Option(
            help="Add thumbnails of each component: the three nearest training images and the mean, or means alone."
        ),
    ] = None,
    data_root: DataRootOption = Path("data"),
    data: FolderOption = None,
) -> None:
    """Write a run's bundle: TorchScript, ONNX, golden answers and the metrics of the test split.

    Given a bundle, make its variants anew and add those that are named; all else in it stays.

    Example: python -m training export runs/digits-mda/demo
    """
    wanted: dict[VariantPrecision, bool] = {"float16": float16, "int8": int8}
    variants = [precision for precision, add in wanted.items() if add]
    if (run / MANIFEST).is_file():
        if names or examples:
            raise ValueError(f"--names and --examples must come with a run, got the bundle {run}: see training name")
        _renew(run, variants, Sources(data_root, data))
        return
    finished = Run.open(run)
    name = name or finished.name
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"name must be lower-case letters, digits, dots, dashes and underscores, got {name!r}: --name")
    target = model_store / name / str(version)
    named = names_for_run(names, finished) if names else {}
    if replace and names is None:
        _require_names_kept(target)
    bundle = export(
        finished,
        sources_of(finished, data_root, data),
        target,
        replace=replace,
        variants=variants,
        names=named,
        examples=examples,
    )
    manifest = bundle.manifest
    show_metrics(manifest.metrics, manifest.labels, as_json=False, names=manifest.component_names)
    for precision, one in manifest.variants.items():
        show_costs(precision, one, manifest.metrics["accuracy"])
    say(f"exported: {target}; package it with  python -m serving package {target}")


app.command("samples")(samples.samples)
app.command("name")(naming.name)
app.command("plane")(planes.plane)
app.command("report")(reports.report)
app.command("thresholds")(abstention.thresholds)
app.command("sweep")(experiments.sweep)
app.command("study")(experiments.study)
app.command("benchmark")(experiments.benchmark)


def _images_of_bundle(bundle: Bundle, data_root: Path, data: Path | None) -> LabelledImages:
    """The images to measure a bundle on, with a warning if their splits may not be those of its training."""
    recorded = bundle.manifest.dataset
    images = load_images(recorded_recipe(bundle.manifest.recipe), Sources(data_root, data))
    _require_classes(images, bundle.manifest.labels)
    if images.dataset.fingerprint() != recorded.fingerprint:
        warn(OTHER_IMAGES)
    elif images.counts() != recorded.splits:
        now = images.counts()
        warn(f"splits must be those of the training, {recorded.splits}, got {now}: the model may know the images")
    return images


def _images_of_run(run: Run, data_root: Path, data: Path | None) -> LabelledImages:
    """The images to measure a run on, in its own splits if they are its own images, else with a warning."""
    description = run.description()
    images = load_images(run.recipe, sources_of(run, data_root, data))
    _require_classes(images, tuple(description["classes"]))
    if images.dataset.fingerprint() == description["dataset"]["fingerprint"]:
        return LabelledImages(images.dataset, run.splits())
    warn(OTHER_IMAGES)
    return images


def _require_classes(images: LabelledImages, classes: tuple[str, ...]) -> None:
    if images.dataset.classes != classes:
        raise DataError(f"classes must be the model's, {', '.join(classes)}, got {', '.join(images.dataset.classes)}")


def _require_names_kept(replaced: Path) -> None:
    """Refuse to lose the names that somebody has given to a bundle's components."""
    if (replaced / MANIFEST).is_file() and (named := Bundle.load(replaced).manifest.component_names):
        count = sum(map(len, named.values()))
        raise ValueError(
            f"--names must be given in the place of the {count} names of components that {replaced} has, got none: "
            f"a TOML file, which may be empty, or {replaced} itself if it is of the same run"
        )


def _renew(folder: Path, variants: Sequence[VariantPrecision], sources: Sources) -> None:
    """Make a bundle's variants anew, from the images that it was trained and measured on."""
    manifest = Bundle.load(folder).manifest
    if not variants and not manifest.variants:
        raise ValueError(f"variants of {folder} must be named, for it has none: --int8, --float16")
    images = images_of_bundle(folder, manifest, sources)
    for precision, one in renew_variants(folder, variants, images).manifest.variants.items():
        show_costs(precision, one, manifest.metrics["accuracy"])


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
    return f"{recipe.refit.head} K={recipe.refit.components}"


def main() -> None:
    """Run the command line; expected errors become one line and exit code 1."""
    try:
        app()
    except (DivergedError, ParityError, ServingError, ValueError, OSError) as exc:  # Data-, Recipe-, RunError: values
        Console(stderr=True, highlight=False).print("[red]error:[/]", escape(str(exc)), soft_wrap=True)
        raise SystemExit(1) from exc


if __name__ == "__main__":
    main()
