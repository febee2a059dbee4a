"""The command `score`."""

import json as json_lines
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from serving.batch.options import Format, Returned, ScoreOptions
from serving.bundle import Precision
from serving.errors import ServingError
from serving.options import HELP
from serving.runtimes import RuntimeName
from serving.torchserve.signals import Interrupted, raise_interrupted

SOME_FAILED = 3  # the exit code if images got errors
INTERRUPTED = 130


def score(
    images: Annotated[
        str,
        typer.Argument(
            help="A folder, glob, text file of paths, Parquet, tar or WebDataset shards, .npy or IDX; here or by URL.",
            metavar="IMAGES",
        ),
    ],
    bundle: Annotated[Path, typer.Option(help="Bundle folder, <name>/<version>.")],
    out: Annotated[str, typer.Option(help="A .parquet or .jsonl file, or a folder of parts; a path or a URL.")],
    source: Annotated[str | None, typer.Option(help="Kind of IMAGES, if it cannot be told by the name.")] = None,
    column: Annotated[str | None, typer.Option(help="Of Parquet: the column of images or of their paths.")] = None,
    key_column: Annotated[str | None, typer.Option(help="Of Parquet: the column that names the images.")] = None,
    form: Annotated[Format | None, typer.Option("--format", help="Of a folder's parts; parquet if unset.")] = None,
    runtime: Annotated[RuntimeName, typer.Option(help=HELP["runtime"])] = ScoreOptions.runtime,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = ScoreOptions.device,
    precision: Annotated[Precision, typer.Option(help=HELP["precision"])] = ScoreOptions.precision,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one call of the graph.")] = ScoreOptions.batch_size,
    top_k: Annotated[int, typer.Option(min=1, help="Classes in the column top_k; none if 1.")] = ScoreOptions.top_k,
    returns: Annotated[list[Returned] | None, typer.Option("--return", help="One more column; repeatable.")] = None,
    coverage: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Column labels_at: labels among which this share of images has its own."),
    ] = None,
    shard_images: Annotated[int, typer.Option(min=1, help="Images in one part, at most.")] = ScoreOptions.shard_images,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Of the cluster; one on this machine if unset.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Workers; one a core if unset, two on a GPU.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of one worker on the CPU; 1 if unset.")] = None,
    nice: Annotated[bool, typer.Option("--nice", help="Leave the machine to others, such as a server.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Begin anew in the place of a table that is there.")] = False,
    allow_errors: Annotated[
        bool, typer.Option("--allow-errors", help="Exit with 0 though images got errors, not 3.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Progress and summary as JSON, one object a line.")] = False,
) -> None:
    """Score many images without a server into a table, one row an image.

    The same command goes on after any death with what is there, and the table is that of an undisturbed run. An image
    that cannot be read is a row with its error; the exit code is then 3.

    Examples: python -m serving score photos/ --bundle model_store/photos/1 --out photos.parquet

    python -m serving score 's3://bucket/shards/*.tar' --bundle model_store/photos/1 --out s3://bucket/answers
    --engine ray --ray-address auto
    """
    from serving.batch.engine import Engine, default_layout
    from serving.batch.local import LocalEngine
    from serving.batch.on_ray import RayEngine
    from serving.batch.score import score as score_images
    from serving.batch.sources import open_source
    from serving.batch.summary_text import print_summary

    raise_interrupted()
    options = ScoreOptions(
        runtime, device, precision, batch_size, shard_images, top_k, tuple(sorted(set(returns or ()))), coverage
    )
    chosen: Engine
    if engine == "ray":
        _require_unset(engine, "--nice", nice)
        chosen = RayEngine(ray_address, device, workers, threads or 1)
    else:
        _require_unset(engine, "--ray-address", ray_address)
        chosen = LocalEngine(default_layout(device, workers, threads, nice=nice))
    try:
        summary = score_images(
            open_source(images, kind=source, column=column, key_column=key_column),
            bundle,
            out,
            options,
            form=form,
            engine=chosen,
            display="none" if quiet else "lines" if json else "bar",
            again=again,
        )
    except Interrupted:
        print("stopped: what is done is kept; the same command goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if json:
        print(json_lines.dumps(summary.as_json()))
    else:
        print_summary(summary, quiet=quiet)
    if summary.figures.failed and not allow_errors:
        raise typer.Exit(SOME_FAILED)


def _require_unset(engine: str, option: str, value: object) -> None:
    """Refuse an option that the engine would ignore."""
    if value:
        raise ServingError(f"{option} must be left out with --engine {engine}, which has no such thing, got {value}")
