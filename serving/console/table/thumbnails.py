"""Small images for the page, served one by one and looked for together.

    thumbnails = Thumbnails(images)
    thumbnails.look_for(keys)           begins to, in another thread
    thumbnails.get(key)                 one that is there or will be, or why not

The last ones are kept. What strangers' bytes hold is decoded within the limits of a server, and what is shown is made
anew from the pixels.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Lock, Thread

from serving.batch.source import Item, SourceError
from serving.batch.summary.images import Thumbnail, thumbnail_of
from serving.console.table.images import Images
from serving.errors import ServingError

KEPT = 4096  # thumbnails of at most some 20 kB
THREADS = 2  # that look for images, so that one slow page does not hold up another browser's


class Thumbnails:
    """The thumbnails of a table.

    Attributes:
        images: where they are made of.
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self._made: OrderedDict[str, Future[Thumbnail]] = OrderedDict()
        self._waiting: list[str] = []
        self._threads = 0
        self._lock = Lock()

    def look_for(self, keys: Sequence[str]) -> None:
        """Begin to make those that are not there, before all that wait; what could not be shown may be there by now."""
        with self._lock:
            for key in keys:
                made = self._made.get(key)
                if made is not None and made.done() and made.exception() is not None:
                    del self._made[key]
            self._begin(keys)

    def get(self, key: str) -> "Future[Thumbnail]":
        """One of them; not to be cancelled, as others may wait for it too."""
        with self._lock:
            self._begin([key])
            self._made.move_to_end(key)
            return self._made[key]

    def _begin(self, keys: Sequence[str]) -> None:
        """Begin to make those that are neither there nor being made."""
        new = [key for key in dict.fromkeys(keys) if key not in self._made]
        self._made |= {key: Future() for key in new}
        self._waiting = new + self._waiting
        if new and self._threads < THREADS:
            self._threads += 1
            Thread(target=self._make_all, name="thumbnails", daemon=True).start()

    def _make_all(self) -> None:
        """Make all that wait, those of several pages in one pass through the source."""
        while True:
            with self._lock:
                keys, self._waiting = self._waiting, []
                awaited = {key: self._made[key] for key in keys}
                if not keys:
                    self._threads -= 1
                    return
            self._make(awaited)
            with self._lock:
                while len(self._made) > KEPT and next(iter(self._made.values())).done():
                    self._made.popitem(last=False)

    def _make(self, awaited: dict[str, "Future[Thumbnail]"]) -> None:
        left = dict(awaited)
        try:
            for item in self.images.find([*awaited]):
                _fulfil(left[item.key], item)
                del left[item.key]
        except Exception as exc:  # libraries behind a source raise their own, and whoever waits must be told
            reason = exc if isinstance(exc, ServingError) else SourceError("the source of the images must be readable")
            for one in left.values():
                one.set_exception(reason)


def _fulfil(awaited: "Future[Thumbnail]", item: Item) -> None:
    try:
        made = thumbnail_of(item)
    except ServingError as error:
        awaited.set_exception(error)
    else:
        awaited.set_result(made)
