"""A page of sections as one HTML file that needs nothing from elsewhere, and its pictures as PNG files.

write_page(folder, "mnist-mda / flagship", "Three components a class.", sections)
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from serving.page import filled_in

TEMPLATE = Path(__file__).parent / "templates" / "report.html.jinja"
PAGE = "index.html"


@dataclass(frozen=True)
class Table:
    """A table: the first cell of every row names it."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure with what stands below it and what stands in its place for those who cannot see it.

    Attributes:
        name: of its file, without the suffix.
        caption: what to look for.
        alt: what it shows.
        figure: the drawing.
        wide: takes the whole width, and is scrolled rather than shrunk on a phone.
    """

    name: str
    caption: str
    alt: str
    figure: Figure
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with text, tables and pictures; `code` is shown as it is."""

    anchor: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    code: str = ""


@dataclass(frozen=True)
class _Drawn:
    """A picture as a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


def write_page(folder: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write index.html and a PNG file a picture into `folder`; the page holds the pictures itself."""
    drawn = {
        picture.name: _draw(picture, folder / f"{picture.name}.png")
        for section in sections
        for picture in section.pictures
    }
    text = filled_in(TEMPLATE, title=title, lead=lead, sections=sections, drawn=drawn)
    (folder / PAGE).write_text(text, encoding="utf-8")
    return folder / PAGE


def _draw(picture: Picture, file: Path) -> _Drawn:
    stream = io.BytesIO()
    picture.figure.savefig(stream, format="png", metadata={"Software": None})
    content = stream.getvalue()
    file.write_bytes(content)
    width, height = (int(side) for side in picture.figure.canvas.get_width_height(physical=True))
    return _Drawn(f"data:image/png;base64,{base64.b64encode(content).decode()}", width, height)
