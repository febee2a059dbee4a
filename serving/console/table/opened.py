"""A table that the console shows, with its images, its marks and what writes them out.

opened = open_for_console("photos.parquet", images=None, marked=None)
opened.facts()
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from serving.batch.places import LocalPlace
from serving.batch.sources.packing import digest
from serving.batch.summary.origin import origin_of
from serving.batch.summary.table import Table, open_table
from serving.batch.summary.write import default_page
from serving.console.table.answer import in_order
from serving.console.table.images import Images
from serving.console.table.marks import Marks
from serving.console.table.rows import Rows
from serving.console.table.thumbnails import Thumbnails
from serving.console.table.writing import Writing
from serving.console.table.written import FOLDER

MOST_LABELS = 2000  # that a page offers


@dataclass(frozen=True)
class Opened:
    """A table and what belongs to it.

    Attributes:
        table: its files.
        missing: parts of it that are yet to be written.
        state: which tells that it was written anew.
        rows: its rows, as they were when the console began.
        images: where its images are.
        thumbnails: what is shown of them.
        marks: which are wrong.
        writing: writes those out.
    """

    table: Table
    missing: int
    state: str
    rows: Rows
    images: Images
    thumbnails: Thumbnails
    marks: Marks
    writing: Writing

    @property
    def folder(self) -> str:
        """Where marked images are written to, as a person may type it; no more of this machine's folders than that."""
        folder = self.marks.folder.absolute() / FOLDER
        here = Path.cwd()
        return str(folder.relative_to(here)) if folder.is_relative_to(here) else f"{folder.parent.name}/{FOLDER}"

    def facts(self) -> dict[str, Any]:
        """What a page has to know beforehand, and what people have to be told."""
        marks, known = self.marks.all(), self.rows.known
        labels = sorted({*known.labels, *(mark.label for mark in marks.values())}, key=in_order)
        return {
            "table": self.table.place.name,
            "rows": known.rows,
            "labels": labels[:MOST_LABELS],
            "filled": sorted(known.filled),
            "notes": self._notes(len(marks), sum(self.rows.counts_of(marks).values()) if marks else 0),
            "images": self.images.reason or None,
            "folder": self.folder,
        }

    def _notes(self, marks: int, found: int) -> list[str]:
        notes = [self.marks.note] if self.marks.note else []
        if found < marks:
            count = "1 mark is of an image" if marks - found == 1 else f"{marks - found:,} marks are of images"
            notes.append(f"{count} that this table does not have; nothing of it is lost.")
        if self.missing:
            count = "1 part" if self.missing == 1 else f"{self.missing:,} parts"
            notes.append(f"{count} of the table must still be written: begin the console anew when score has ended.")
        if state_of(self.table) != self.state:
            notes.append(
                "The table has changed since the console began; what is shown is as it was then. Begin the console "
                "anew to see the new one."
            )
        return notes


def open_for_console(address: str, images: str | None, marked: Path | None) -> Opened:
    """Read a table for the console, and say on the standard error how far it is.

    Args:
        address: of what `score` has written: a .parquet or .jsonl file or a folder of parts; a path or a URL.
        images: where the images are, if not where the table says.
        marked: folder for marks; beside the table if left out.

    Raises:
        TableError: if the table is missing or none.
        SourceError: if `images` has none.
        MarkedError: if the marks that are there cannot be read.
    """
    table = open_table(address)
    state, origin, name = state_of(table), origin_of(table), table.place.name
    with Console(stderr=True).status(f"Reading {name}") as status:
        rows = Rows.of(table, lambda count: status.update(f"Reading {name}: {count:,} rows"))
    found = Images.of(rows, origin.source, images)
    marks = Marks(default_marked(table) if marked is None else marked, name, state)
    missing, thumbnails, writing = origin.missing_parts(table), Thumbnails(found), Writing(name, found, marks)
    return Opened(table, missing, state, rows, found, thumbnails, marks, writing)


def default_marked(table: Table) -> Path:
    """photos-marked for photos.parquet, beside it, or here if the table is elsewhere."""
    page = default_page(table)
    return page.with_name(f"{page.stem}-marked")


def state_of(table: Table) -> str:
    """What shows that a table was written anew: names of its files and, of this machine's, sizes and times."""
    texts = (f"{file.name} {file.info() if isinstance(file, LocalPlace) else None}" for file in table.files)
    return digest(text.encode(errors="surrogateescape") for text in texts)
