"""The command that says which answers to accept: thresholds."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from serving.bundle import MANIFEST
from serving.judgement import ATYPICAL_BELOW
from training.analysis.abstention import thresholds_of
from training.commands.options import DataRootOption, DeviceOption, FolderOption
from training.devices import choose_device
from training.images import sources_of
from training.progress import say
from training.run import Run, RunError
from training.selective import CONFIDENCE, Thresholds, fewest_images


def thresholds(
    run: Annotated[Path, typer.Argument(help="A finished run that holds images out: runs/<recipe>/<id>.")],
    error: Annotated[float, typer.Option(help="Share of the accepted answers that may be wrong.")],
    confidence: Annotated[float, typer.Option(help="With which the accepted answers hold it.")] = CONFIDENCE,
    typicality: Annotated[
        float, typer.Option(help="Accept no answer for an image that is less typical.")
    ] = ATYPICAL_BELOW,
    data_root: DataRootOption = Path("data"),
    data: FolderOption = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find from which probability on a model's answers hold an error, on images that it has not seen.

    Prints what a request takes as its parameters; answers that are below are then flagged as uncertain. It holds for
    images like those of the training, for this run and for the float32 graph of its bundle.

    Example: python -m training thresholds runs/mnist-mda/first --error 0.01
    """
    if (run / MANIFEST).is_file():
        raise RunError(
            f"run must be a folder runs/<recipe>/<id>, got the bundle {run}, which does not say which images of those "
            "held out were right: name the run that it was exported from"
        )
    finished = Run.open(run)
    sources = sources_of(finished, data_root, data)
    found = thresholds_of(finished, sources, choose_device(device), error, confidence, typicality)
    if not found.holds:
        raise ValueError(_none(found))
    if as_json:
        print(json.dumps(asdict(found) | {"error_bound": found.error_bound, "parameters": found.parameters}))
        return
    say(_in_words(found))
    print(json.dumps(found.parameters))


def _in_words(found: Thresholds) -> str:
    accepted = f"answers with a probability of at least {found.probability:g}"
    if found.typicality is not None:
        accepted += f" and a typicality of at least {found.typicality:g}"
    return (
        f"accept {accepted}: {found.accepted / found.images:.1%} of {found.images:,} held-out images, of which "
        f"{found.wrong:,} are wrong; with {found.confidence:.0%} confidence at most {found.error_bound:.2%} of the "
        "answers accepted are"
    )


def _none(tried: Thresholds) -> str:
    return (
        f"error must be one that some answers hold with {tried.confidence:.0%} confidence, got {tried.error:g}: from "
        f"probability {tried.probability:g} on, where it is likeliest, {tried.wrong:,} of {tried.accepted:,} held-out "
        f"images are wrong, so that it may be {tried.error_bound:.2%}; allow for more error, or hold more images out "
        f"({fewest_images(tried.error, tried.confidence):,} accepted without a wrong one are the fewest)"
    )
