"""The command that explains a run: report."""

import json
from pathlib import Path
from typing import Annotated

import typer

from training.analysis.evidence import SAMPLE, measure_run
from training.commands.options import DataRootOption, DeviceOption, FolderOption, RecordOption
from training.devices import choose_device
from training.images import sources_of
from training.progress import say
from training.recipe import load_recipe
from training.results import model_figures, record_model, require_other_seeds
from training.run import Run


def report(
    run: Annotated[Path, typer.Argument(help="A finished run: runs/<recipe>/<id>.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; RUN/report if left out.")] = None,
    images: Annotated[
        bool, typer.Option(help="Show images of the data set; without them the page may be published.")
    ] = True,
    sample: Annotated[
        int, typer.Option(min=1, help="About how many training images to fit the statistics of features to.")
    ] = SAMPLE,
    names: Annotated[
        Path | None,
        typer.Option(
            help='Names of components: a bundle that has them, or TOML, a table a class, lines such as 0 = "flat".'
        ),
    ] = None,
    data_root: DataRootOption = Path("data"),
    data: FolderOption = None,
    device: DeviceOption = "auto",
    record: RecordOption = False,
    seed_runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--seed-run", help="With --record: a run of the same recipe with another seed, for mean ± sd. Repeatable."
        ),
    ] = None,
) -> None:
    """Explain a run on one HTML page: its errors, calibration, features, components, and when it should not decide.

    The page index.html needs no other file; beside it lie its pictures and report.json, all figures for programs. The
    network is shown drawn images too, and, if it knows MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100, others of these
    data sets, which are downloaded into --data-root if they are not there. On two cores it takes some minutes.

    Example: python -m training report runs/digits-mda/demo --no-images --out docs/digits-mda
    """
    from training.report.write import FIGURES, write_report  # with matplotlib, which no other command needs

    finished, chosen = Run.open(run), choose_device(device)
    sources = sources_of(finished, data_root, data)
    others = [Run.open(other) for other in seed_runs or []]
    require_other_seeds(finished, others)
    if others and not record:
        raise ValueError("--seed-run must come with --record, which writes its accuracy, got it without")
    page = write_report(finished, sources, out, images=images, device=chosen, sample=sample, names=names)
    if record:
        report_of = json.loads((page.parent / FIGURES).read_bytes())
        figures = model_figures(report_of, finished.recipe, load_recipe(finished.name)[1].fit.epochs)
        if others:
            figures["accuracy_of_seeds"] = {finished.recipe.seed: figures["after"]["accuracy"]} | {
                other.recipe.seed: measure_run(other, sources, chosen)["accuracy"] for other in others
            }
        record_model(finished, figures)
    say(f"report: open {page}")
