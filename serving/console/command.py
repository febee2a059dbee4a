"""The command `console`."""

import os
import sys
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from serving.errors import ServerError, ServingError
from serving.torchserve.launch import STATE
from serving.torchserve.ports import LOOPBACK

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")


def console(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Bundle folders: they answer in this process; with --url, they say what the server's models are.",
            metavar="[BUNDLE]...",
            show_default="those of the server that runs in --state",
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help="A server elsewhere.", show_default="the one started here")] = None,
    metrics_url: Annotated[
        str | None, typer.Option(help="Its metrics, for the page on health.", show_default="those of the one here")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="JSON file with the key; needed for a server elsewhere.")
    ] = None,
    state: Annotated[Path, typer.Option(help="Folder of the server that was started here.")] = STATE,
    host: Annotated[str, typer.Option(help="Address of the page; it answers to loopback names alone.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0, any.")] = 8090,
    open_page: Annotated[
        bool | None, typer.Option("--open/--no-open", help="Open a browser.", show_default="if there is a screen")
    ] = None,
    table: Annotated[str | None, typer.Option(help="A table that score has written, to look at.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Where the table's images are.", show_default="where the table says")
    ] = None,
    marked: Annotated[Path | None, typer.Option(help="Folder to write marked images of the table to.")] = None,
) -> None:
    """Open pages in a browser: classify images, compare models, see the server's health and what score has written.

    Nothing but the console is asked by the pages, and the server's key stays in it; Ctrl-C ends it.
    The key of a server elsewhere may also stand in the variable DISCRIMINANT_INFERENCE_KEY.

    Examples: python -m serving console

    python -m serving console model_store/mnist-mda/1
    """
    _require_extra()
    from serving.console.app import create_app
    from serving.console.serve import address, listen, serve
    from serving.console.setup import Asked, Setup, choose

    if table is None and (images is not None or marked is not None):
        raise ServingError("--images and --marked must come with --table, got no table")
    setup = choose(Asked(bundles or [], url, metrics_url, key_file, state), os.environ)
    if setup is None and table is None:
        raise ServerError(
            f"a server must run in {state}, or a BUNDLE, --url or --table be named, got none of them: "
            "begin a server with `python -m serving start`"
        )
    setup = replace(setup or Setup.of_nothing(), table=table, images=images, marked=marked)
    app, listener = create_app(setup), listen(host, port)
    print(f"The console is at {address(listener)}  (Ctrl-C ends it)", flush=True)
    if _has_screen() if open_page is None else open_page:
        webbrowser.open(address(listener))
    serve(app, listener)


def _has_screen() -> bool:
    """Whether a browser would have a window; without one, some would take the terminal."""
    return sys.stdout.isatty() and (sys.platform == "darwin" or any(name in os.environ for name in SCREENS))


def _require_extra() -> None:
    try:
        import jinja2  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as exc:
        raise ServingError(
            f"the console must have jinja2, starlette and uvicorn, got no {exc.name}: "
            "pip install 'discriminant[console]'"
        ) from exc
