"""A table's page, or its figures for programs.

python -m serving summarize answers.parquet --bundle model_store/mnist-mda/1        # answers.html
"""

import json
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from serving.batch.places import LocalPlace
from serving.batch.source import Source
from serving.batch.summary.figures import Figures, figures_of
from serving.batch.summary.images import Thumbnails, thumbnails
from serving.batch.summary.page import require_replaceable, write_page
from serving.batch.summary.table import Table, open_table
from serving.bundle import Bundle
from serving.errors import ServingError


def figures_as_json(table: str | Path, bundle: Path) -> str:
    """All figures of a table that the bundle in a folder has made; see `figures.Figures`.

    Raises:
        TableError: if the table is empty, cannot be read, or is not of this bundle alone.
        BundleError: if the bundle cannot be used.
    """
    figures = figures_of(open_table(table), Bundle.load(bundle))
    return json.dumps(asdict(figures), indent=1, allow_nan=False, ensure_ascii=False)


def write_summary(
    table: str | Path, bundle: Path, out: Path | None = None, *, source: Source | None = None, images: bool = True
) -> Path:
    """Write the page about a table that the bundle in a folder has made.

    Args:
        table: a file or a folder of parts, here or by URL.
        bundle: the bundle's folder.
        out: the page; see `default_page`.
        source: where the images are; if left out, what the table says.
        images: whether to show some.

    Returns:
        The page.

    Raises:
        ServingError: if what draws the page is not installed, or something else is in its place.
        TableError: if the table is empty, cannot be read, or is not of this bundle alone.
        BundleError: if the bundle cannot be used.
        SourceError: if `source` was named and cannot be read. A source that only the table names may be gone: the page
            says so.
    """
    _require_extra()
    opened, model = open_table(table), Bundle.load(bundle)
    page = out or default_page(opened)
    require_replaceable(page)
    figures = figures_of(opened, model)
    seen = _seen(figures, model, source) if images else Thumbnails(reason="they were not asked for")
    from serving.batch.summary.sections import sections_of

    lead = f"{figures.rows:,} images, scored by {figures.model}, version {figures.version}."
    write_page(page, opened.place.name, lead, sections_of(figures, model.manifest, seen))
    return page


def default_page(table: Table) -> Path:
    """answers.html for answers.parquet, and for a folder answers/: beside it, or here if the table is elsewhere."""
    name = table.place.name if table.is_folder else PurePosixPath(table.place.name).stem
    folder = Path(table.place.path).parent if isinstance(table.place, LocalPlace) else Path()
    return folder / f"{name}.html"


def _seen(figures: Figures, bundle: Bundle, source: Source | None) -> Thumbnails:
    keys = list(dict.fromkeys(row.key for row in [*figures.least_typical, *figures.closest_to_a_tie]))
    spec = bundle.manifest.input
    if not keys:
        return Thumbnails()
    if source is not None:
        return thumbnails(keys, source, spec)
    if figures.source is None:
        return Thumbnails(reason="the table does not say where its images are; name the place with --images")
    from serving.batch.sources import source_of

    try:
        return thumbnails(keys, source_of(figures.source), spec)
    except (ServingError, KeyError, TypeError) as error:  # the table may describe anything
        return Thumbnails(
            reason=f"they are not where the table says any more ({error}); name their place with --images"
        )


def _require_extra() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise ServingError(
            f"a page must be drawn by matplotlib and filled in by jinja2, got no {exc.name}: "
            "pip install 'discriminant[score]', or ask for --json"
        ) from exc
