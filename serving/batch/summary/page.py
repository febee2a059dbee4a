"""Sections as one HTML file that needs nothing from elsewhere, runs nothing, and is readable in light and dark.

    write_page(Path("answers.html"), "answers.parquet", "10,000 images.", sections)

All text is escaped: keys, messages and names of classes come from strangers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.batch.places import LocalPlace
from serving.batch.summary.images import Thumbnail
from serving.errors import ServingError
from serving.page import filled_in

TEMPLATE = Path(__file__).parent / "templates" / "summary.html.jinja"
MARK = b'<meta name="generator" content="discriminant summarize">'
MARK_WITHIN = 1024  # bytes of the page


@dataclass(frozen=True)
class Rows:
    """A table: the first cell of every row names it; a cell that is a share from 0 to 1 becomes a bar.

    A wide one stands beside nothing.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    wide: bool = False


@dataclass(frozen=True)
class Drawing:
    """A chart as data URIs of SVG images, one for light and one for dark pages, in CSS pixels."""

    light: str
    dark: str
    width: int
    height: int
    caption: str
    alt: str


@dataclass(frozen=True)
class Card:
    """An image of a list: what is shown of it, or why nothing is; its key; what is known of it."""

    key: str
    image: Thumbnail | None
    missing: str
    facts: Sequence[str]


@dataclass(frozen=True)
class Section:
    """A heading with text, drawings, tables and cards."""

    anchor: str
    title: str
    text: Sequence[str] = ()
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Rows] = ()
    cards: Sequence[Card] = ()


def require_replaceable(page: Path) -> None:
    """Refuse to write over what is no page of this kind.

    Raises:
        ServingError: if it is there and something else.
    """
    if not page.exists():
        return
    if page.is_file():
        with page.open("rb") as stream:
            if MARK in stream.read(MARK_WITHIN):
                return
    raise ServingError(f"{page} must be a new file or a page about a table, got something else: choose another --out")


def write_page(page: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page; it appears when it is whole."""
    text = filled_in(TEMPLATE, title=title, lead=lead, sections=sections)
    LocalPlace(str(page.absolute())).write(lambda out: out.write(text.encode(errors="replace")))
