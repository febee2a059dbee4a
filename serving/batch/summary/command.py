"""The command `summarize`."""

from pathlib import Path
from typing import Annotated

import typer


def summarize(
    table: Annotated[
        str,
        typer.Argument(
            help="What score has written: a .parquet or .jsonl file or a folder of parts; a path or a URL.",
            metavar="TABLE",
        ),
    ],
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle that scored it, <name>/<version>.")],
    out: Annotated[Path | None, typer.Option(help="HTML page to write.", show_default="beside the table")] = None,
    thumbnails: Annotated[
        bool, typer.Option(help="Show the images that are least typical or closest to a tie.")
    ] = True,
    images: Annotated[
        str | None, typer.Option(help="Where the images are.", show_default="what the table says")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures instead.")] = False,
) -> None:
    """Make a page about a table that score has written: classes, confidence, density, components, odd images.

    Example: python -m serving summarize photos.parquet --bundle model_store/photos/1
    """
    from serving.batch.sources import open_source
    from serving.batch.summary.write import figures_as_json, write_summary

    if json:
        print(figures_as_json(table, bundle))
    else:
        source = open_source(images) if images and thumbnails else None
        print(f"Wrote {write_summary(table, bundle, out, source=source, images=thumbnails)}")
