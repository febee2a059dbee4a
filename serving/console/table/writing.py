"""Writing out the marked images while the page is looked at: one at a time, in another thread.

writing = Writing(name, images, marks)
writing.begin()
writing.progress()
"""

from dataclasses import dataclass, replace
from threading import Lock, Thread
from typing import Literal

from serving.console.table.images import Images
from serving.console.table.marks import Mark, Marks
from serving.console.table.written import Written, write_images
from serving.errors import BadRequest, ServingError


@dataclass(frozen=True)
class Progress:
    """How far it is.

    Attributes:
        state: whether it has begun, and how it has ended.
        done: images that were looked at.
        total: images that are marked.
        written: what became of them, when it is done.
        error: why it has failed.
    """

    state: Literal["none", "running", "done", "failed"] = "none"
    done: int = 0
    total: int = 0
    written: Written | None = None
    error: str | None = None


class StillWriting(BadRequest):
    """The images are being written already."""

    status = 409
    code = "still_writing"


class Writing:
    """The writing of a table's marked images.

    Args:
        table: its name.
        images: where they are.
        marks: which they are.
    """

    def __init__(self, table: str, images: Images, marks: Marks) -> None:
        self._table, self._images, self._marks = table, images, marks
        self._lock, self._now = Lock(), Progress()

    def progress(self) -> Progress:
        """How far it is now."""
        return self._now

    def begin(self) -> None:
        """Begin with the marks that there are now.

        Raises:
            StillWriting: if it has begun and not ended.
            MarkedError: if another console writes to the folder.
        """
        with self._lock:
            if self._now.state == "running":
                raise StillWriting("the marked images must be written once at a time, got another request: wait for it")
            self._marks.hold()
            marks = self._marks.all()
            self._now = Progress("running", total=len(marks))
        Thread(target=self._write, args=(marks,), name="write marked images", daemon=True).start()

    def _write(self, marks: dict[str, Mark]) -> None:
        def tell(done: int) -> None:
            self._now = replace(self._now, done=done)

        try:
            written = write_images(self._marks.folder, self._table, marks, self._images, tell)
            self._now = replace(self._now, state="done", done=len(marks), written=written)
        except ServingError as error:
            self._now = replace(self._now, state="failed", error=str(error))
        except Exception as exc:  # libraries behind a source raise their own, and the page must not wait for ever
            self._now = replace(self._now, state="failed", error=f"{type(exc).__name__}: {exc}")
