"""The command that explains a run: report."""

import json
from pathlib import Path
from typing import Annotated

import typer

from training.analysis.evidence import SAMPLE
from training.commands.options import DataRoot, Device, Folder, Record
from training.progress import say
from training.recipe import load_recipe
from training.results import model_figures
from training.results import record as record_figures
from training.run import Run
from training.train import choose_device, sources_of


def report(
    run: Annotated[Path, typer.Argument(help="A finished run: runs/<recipe>/<id>.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; RUN/report if left out.")] = None,
    images: Annotated[
        bool, typer.Option(help="Show images of the data set; without them the page may be published.")
    ] = True,
    sample: Annotated[
        int, typer.Option(min=1, help="About how many training images to fit the statistics of features to.")
    ] = SAMPLE,
    data_root: DataRoot = Path("data"),
    data: Folder = None,
    device: Device = "auto",
    record: Record = False,
) -> None:
    """Explain a run on one HTML page: its errors, calibration, features and components, and how it meets strangers.

    The page index.html needs no other file; beside it lie its pictures and report.json, all figures for programs. A
    network that knows MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 is also shown a data set that it does not know, which
    is downloaded into --data-root if it is not there. On two cores it takes a minute or two.

    Example: python -m training report runs/digits-mda/demo --no-images --out docs/digits-mda
    """
    from training.report.write import FIGURES, write_report  # with matplotlib, which no other command needs

    finished = Run.open(run)
    sources = sources_of(finished, data_root, data)
    page = write_report(finished, sources, out, images=images, device=choose_device(device), sample=sample)
    if record:
        report_of = json.loads((page.parent / FIGURES).read_bytes())
        epochs = load_recipe(finished.name)[1].fit.epochs
        record_figures("models", finished.name, model_figures(report_of, epochs))
    say(f"report: open {page}")
