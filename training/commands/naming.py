"""The command that says and changes what a bundle's components are called: name."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from serving.bundle import EXAMPLES, Bundle, Manifest
from training.commands.shown import components_table
from training.component_names import (
    ComponentNames,
    components_of,
    name_components,
    names_text,
    read_component_names,
    with_name,
)
from training.files import replace_text
from training.progress import console, say

GALLERY = Path("report", "index.html")
SHOWS_IMAGES = "components.png"  # of a report, unless it was written with --no-images


def name(
    bundle: Annotated[Path, typer.Argument(help="A bundle: model_store/<name>/<version>.")],
    label: Annotated[str | None, typer.Argument(help="The class whose component is named.")] = None,
    component: Annotated[int | None, typer.Argument(help="Which of its components, from 0.")] = None,
    called: Annotated[str | None, typer.Argument(metavar="NAME", help="Its name; empty to take it away.")] = None,
    names: Annotated[
        Path | None,
        typer.Option(help="Put the names of this TOML file, or of another bundle, in the place of all that there are."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write a TOML file for --names, with a line for every component, to fill in.")
    ] = None,
) -> None:
    """Show what a bundle's components are called, where to see what is in them, and give them names.

    Only bundle.json is written anew: the model stays the same. A server that runs has the new names once the bundle has
    been packaged and deployed anew. Names belong to a run: trained anew, components are others.

    Example: python -m training name model_store/mnist-mda/1 7 2 crossed
    """
    if names is not None and label is not None:
        raise ValueError(f"--names must come without LABEL, COMPONENT and NAME, got both {names} and {label}")
    if label is not None and (component is None or called is None):
        raise ValueError(f'one name must be given as LABEL COMPONENT NAME, such as 7 2 "crossed", got {label} alone')
    manifest = Bundle.load(bundle).manifest
    if not components_of(manifest):
        raise ValueError(f"{bundle} must have components to be named, got the head {manifest.head.kind}")
    wanted = _wanted(bundle, manifest, label, component, called, names)
    if wanted is not None:
        manifest = name_components(bundle, wanted).manifest
    if write is not None:
        replace_text(write, names_text(manifest))
        say(f"written: {write}; fill it in, then  python -m training name {bundle} --names {write}")
        return
    occupancy = manifest.metrics.get("occupancy")
    console.print(components_table(manifest.labels, components_of(manifest), occupancy, manifest.component_names))
    for line in _what_next(bundle, manifest, is_changed=wanted is not None):
        say(line)


def _wanted(
    bundle: Path, manifest: Manifest, label: str | None, component: int | None, called: str | None, names: Path | None
) -> ComponentNames | None:
    """The names that the bundle shall have; None if it is only looked at."""
    if names is not None:
        return read_component_names(names, manifest.labels, components_of(manifest), bundle)
    if label is None or component is None or called is None:
        return None
    return with_name(manifest.component_names, label, component, called)


def _what_next(bundle: Path, manifest: Manifest, *, is_changed: bool) -> Iterable[str]:
    """Where the images of the components are to be seen, and what to do with the names."""
    if is_changed:
        yield f"\nnamed; servers get it with  python -m serving package {bundle}"
        return
    page = bundle / GALLERY
    if manifest.examples is not None:
        yield f"\nthumbnails of each component: {bundle / EXAMPLES}"
    elif (page.parent / SHOWS_IMAGES).is_file():
        yield f"\nimages of each component: {page}"
    else:
        yield f"\nsee images of each component with  python -m training report RUN, of the run that {bundle} is of"
    example = f'{manifest.labels[0]!r} 0 "what they show"'
    yield f"name one with  python -m training name {bundle} {example}, all of them with --names (a file by --write)"
