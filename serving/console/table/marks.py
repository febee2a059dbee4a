"""Which images are marked as wrong, and what they are instead: kept in a file, so that they outlive the console.

    marks = Marks(Path("photos-marked"), "photos.parquet", state)
    marks.set("cat/1.jpg", "dog", was="cat")
    marks.set("cat/1.jpg", None)                      takes it back

The file, `marks.json`, is written anew at each mark, beside its place and renamed. A mark is of a key, so it stays with
its image when the table is written anew. The folder is made at the first mark, and from then on no other console may
write to it.
"""

from contextlib import ExitStack
from pathlib import Path
from threading import Lock

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.batch.places import LocalPlace
from serving.errors import ServerError, ServingError
from serving.lock import locked

FILE = "marks.json"


class MarkedError(ServingError):
    """The marks cannot be read or written, or something else is in their place."""

    code = "bad_marks"


class Mark(BaseModel):
    """What an image is, and what the table says that it is; None if it has no answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    was: str | None


class Kept(BaseModel):
    """What the file holds.

    Attributes:
        table: the name of the table that the marks were made on.
        state: which tells that it was written anew since.
        marks: by key.
    """

    model_config = ConfigDict(extra="forbid")

    table: str
    state: str
    marks: dict[str, Mark] = {}


class Marks:
    """The marks of a table.

    Attributes:
        folder: where they are kept.
        note: what to know of marks that were there before; None if there is nothing.
    """

    def __init__(self, folder: Path, table: str, state: str) -> None:
        """Read what is there; nothing is written yet.

        Args:
            folder: where marks are kept, whether it is there or not.
            table: the name of the table.
            state: which tells that it was written anew.

        Raises:
            MarkedError: if what is there cannot be read.
        """
        self.folder = folder
        self._now = Kept(table=table, state=state)
        self._lock, self._held = Lock(), ExitStack()
        self._is_held = False
        before = self._read()
        self.note = _note(before, self._now) if before is not None else None
        self._now.marks = {} if before is None else before.marks

    def all(self) -> dict[str, Mark]:
        """The marks by key, as they are now."""
        with self._lock:
            return dict(self._now.marks)

    def set(self, key: str, label: str | None, was: str | None = None) -> int:
        """Mark an image, or take its mark away.

        Args:
            key: of the image.
            label: what it is; None if its mark is taken away.
            was: what the table says that it is.

        Returns:
            How many are marked now.

        Raises:
            MarkedError: if the mark cannot be kept, which leaves all as it was.
        """
        with self._lock:
            self._hold()
            marks = {other: mark for other, mark in self._now.marks.items() if other != key}
            if label is not None:
                marks[key] = Mark(label=label, was=was)
            self._write(self._now.model_copy(update={"marks": marks}))
            self._now.marks = marks
            return len(marks)

    def hold(self) -> None:
        """Keep every other console from the folder.

        Raises:
            MarkedError: if another one does.
        """
        with self._lock:
            self._hold()

    def close(self) -> None:
        """Let other consoles write to the folder."""
        with self._lock:
            self._held.close()
            self._is_held = False

    def _hold(self) -> None:
        if self._is_held:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(locked(self.folder, "console"))
        except OSError as exc:
            raise MarkedError(
                f"{self.folder.name} must be a folder that can be written to, got {exc.strerror}"
            ) from exc
        except ServerError as exc:
            raise MarkedError(
                f"one console at a time must write to {self.folder.name}, got another one that does: "
                "mark there, or begin this one with another --marked"
            ) from exc
        before = self._read()  # another console may have written since
        self._is_held = True
        self._now.marks = {} if before is None else before.marks

    def _read(self) -> Kept | None:
        file = f"{self.folder.name}/{FILE}"
        try:
            return Kept.model_validate_json((self.folder / FILE).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise MarkedError(f"{file} must be readable, got {exc.strerror}") from exc
        except ValidationError as exc:
            raise MarkedError(
                f"{file} must be the marks of a console, got something else ({exc.errors()[0]['msg']}): "
                "move it away, or choose another --marked"
            ) from exc

    def _write(self, kept: Kept) -> None:
        content = kept.model_dump_json(indent=1).encode()
        try:
            LocalPlace(str(self.folder / FILE)).write(lambda out: out.write(content))
        except OSError as exc:
            raise MarkedError(f"the mark must be written to {self.folder.name}, got {exc.strerror}") from exc


def _note(before: Kept, now: Kept) -> str | None:
    if before.marks and before.table != now.table:
        return f"The marks of this folder were made on another table, {before.table}."
    if before.marks and before.state != now.state:
        return "The table was written anew since the marks were made; they stay with their images."
    return None
