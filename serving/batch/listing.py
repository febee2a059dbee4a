"""Listing folders of any size in sorted order: a hundred bytes a file would be a gigabyte for ten million.

Names are gathered in runs, sorted and packed, a run in one piece of memory; the runs are merged as they are read. So a
folder takes the bytes of its names, wherever its files are, and only the folders on the way down are held.
"""

import heapq
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

RUN_NAMES = 65_536  # are sorted at once
PACK_NAMES = 512  # are unpacked at once
FOLDER = b"\0"  # ends the name of a folder, and sorts "a" before "a.png"
BETWEEN = b"/"  # is in no name

Takes = Callable[[bytes, bytes, bool], bool]  # (path of the folder, name in it, whether that is a folder)


class Entry(NamedTuple):
    """One file below a root; names are bytes, as file systems have them.

    Attributes:
        folder: path of its folder, relative to the root; empty for the root.
        name: its name there.
        size: in bytes; None if it is unknown.
        mtime_ns: time of its last change; None if it is unknown.
    """

    folder: bytes
    name: bytes
    size: int | None
    mtime_ns: int | None

    @property
    def path(self) -> bytes:
        """The path relative to the root."""
        return joined(self.folder, self.name)


def joined(folder: bytes, name: bytes) -> bytes:
    """A relative path."""
    return folder + b"/" + name if folder else name


def not_hidden(folder: bytes, name: bytes, is_folder: bool) -> bool:
    """Take everything whose name does not start with "."."""
    return not name.startswith(b".")


def walk_folders(listed: Callable[[bytes], Iterator[Entry | bytes]]) -> Iterator[Entry]:
    """All files below a root, given what lists one folder: its files, and the relative paths of its folders, sorted."""
    stack = [listed(b"")]
    while stack:
        for item in stack[-1]:
            if isinstance(item, Entry):
                yield item
            else:
                stack.append(listed(item))
                break
        else:
            stack.pop()


def walk_local(root: bytes, folder: bytes, takes: Takes) -> Iterator[Entry | bytes]:
    """One folder of this machine for `walk_folders`. Links to folders are not followed, as they may lead in circles."""
    path = joined(root, folder) if folder else root
    for name in sorted_names(_local_names(path, folder, takes)):
        if name.endswith(FOLDER):
            yield joined(folder, name[:-1])
            continue
        try:
            status = os.stat(path + b"/" + name)  # noqa: PTH116 - names are bytes
            yield Entry(folder, name, status.st_size, status.st_mtime_ns)
        except (FileNotFoundError, PermissionError):  # a link to nothing, or gone by now: reading it will tell
            yield Entry(folder, name, None, None)


def _local_names(path: bytes, folder: bytes, takes: Takes) -> Iterator[bytes]:
    with os.scandir(path) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if (is_folder or entry.is_file(follow_symlinks=False) or _names_a_file(entry)) and takes(
                folder, entry.name, is_folder
            ):
                yield entry.name + FOLDER if is_folder else entry.name


def _names_a_file(entry: os.DirEntry[bytes]) -> bool:
    """Whether a link leads to a file, or to nothing: someone meant an image to be there."""
    if not entry.is_symlink():
        return False  # a pipe, a socket or a device
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def sorted_names(names: Iterable[bytes]) -> Iterator[bytes]:
    """Sort names that have no "/" in them, in little more memory than their bytes."""
    names, runs = iter(names), []
    while run := sorted(islice(names, RUN_NAMES)):
        runs.append([BETWEEN.join(run[start : start + PACK_NAMES]) for start in range(0, len(run), PACK_NAMES)])
    return heapq.merge(*map(_unpacked, runs)) if len(runs) > 1 else _unpacked(*runs) if runs else iter(())


def _unpacked(packs: list[bytes]) -> Iterator[bytes]:
    packs.reverse()
    while packs:
        yield from packs.pop().split(BETWEEN)
