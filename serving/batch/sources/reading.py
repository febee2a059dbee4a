"""Reading the files of a source: the bytes of each, or why it cannot be had; from far away, several at a time."""

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from serving.batch.source import Item, SourceError, UnreadableFile
from serving.errors import ImageTooLarge, ServingError

READERS = 16  # requests at a time to a file system where each takes tens of milliseconds
AHEAD = 64  # files that are read or being read before they are asked for,
AHEAD_BYTES = 64 * 1024 * 1024  # and no further one is begun while those that are read have more bytes than this
OF_ONE_FILE = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
DENIED = "ACCESS_DENIED"  # stands in pyarrow's error for S3's 403

Wanted = TypeVar("Wanted")


def read_item(key: str, read: Callable[[int], bytes], max_bytes: int, is_there: Callable[[], bool]) -> Item:
    """One file as an item.

    Args:
        key: its name.
        read: gives its bytes, or raises what `Place.read` does.
        max_bytes: a larger file is not read.
        is_there: whether the source as a whole still is where it was; asked only if the file is not.

    Raises:
        SourceError: if it is not, or if something else than this one file is at fault.
    """
    try:
        return Item(key, read(max_bytes))
    except ImageTooLarge as error:
        return Item(key, error)
    except ServingError:
        raise
    except Exception as exc:  # libraries behind fsspec raise their own
        if not _is_of_one_file(exc):
            raise SourceError(
                f"{key} must be readable, got {type(exc).__name__}: {exc}: mend what holds it and go on"
            ) from exc
        with source_errors(f"the source of {key}"):
            there = is_there()
        if not there:
            raise SourceError(f"the source of {key} must stay where it is, got nothing there: put it back") from exc
        reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
        reason = reason.partition(". Detail")[0]  # pyarrow's says it twice
        return Item(key, UnreadableFile(f"image must be a file that can be read, got: {reason}"))


def _is_of_one_file(exc: Exception) -> bool:
    if isinstance(exc, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    return isinstance(exc, OSError) and (exc.errno in OF_ONE_FILE or DENIED in str(exc))


def as_many(items: Iterable[Item], images: int | None, what: str) -> Iterator[Item]:
    """The items of a shard, which must be as many as when it was made.

    Raises:
        SourceError: if there are fewer.
    """
    count = 0
    for item in items:
        count += 1
        yield item
    if images is not None and count < images:
        raise SourceError(f"{what} must have the images that it had at first, got fewer: begin again")


def read_ahead(read: Callable[[Wanted], Item], wanted: Iterable[Wanted]) -> Iterator[Item]:
    """What `read` makes of each, in order, several at a time."""
    waiting: deque[Future[Item]] = deque()
    pool = ThreadPoolExecutor(READERS)
    try:
        for one in wanted:
            while _is_full(waiting):
                yield waiting.popleft().result()
            waiting.append(pool.submit(read, one))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _is_full(waiting: deque[Future[Item]]) -> bool:
    running = sum(not future.done() for future in waiting)
    return running >= READERS or len(waiting) >= AHEAD or sum(map(_held_bytes, waiting)) > AHEAD_BYTES


def _held_bytes(future: Future[Item]) -> int:
    if not future.done() or future.exception() is not None:
        return 0
    return future.result().image_bytes


@contextmanager
def source_errors(what: str) -> Iterator[None]:
    """Whatever a file system raises means that the source is broken."""
    try:
        yield
    except (OSError, EOFError) as exc:
        raise SourceError(f"{what} must be readable, got {type(exc).__name__}: {exc}: mend it and go on") from exc
