"""Patterns of paths: `photos/**/*.jpg`, `train-{000..099}.tar`, `{cats,dogs}/*.png`.

Wildcards are those of the shell: `*`, `?` and `[...]` within a name, `**` for any folders; none of them begins with a
hidden name. In a URL `?` begins the query instead. A path without wildcards, once its braces are expanded, must exist.
"""

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice

from serving.batch.listing import Entry
from serving.batch.places import URL, Place, place_of
from serving.batch.source import SourceError

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_PATHS = 100_000  # that braces may stand for

Parts = tuple[str, ...]


def is_pattern(text: str) -> bool:
    """Whether a path or URL has wildcards or braces."""
    return _is_wild(text.partition("?")[0] if URL.match(text) else text)


def _is_wild(part: str) -> bool:
    return any(mark in part for mark in "*?[{")


def split(pattern: str) -> tuple[Place, str]:
    """The folder down to which a pattern is fixed, and the rest."""
    head, mark, query = pattern.partition("?") if URL.match(pattern) else (os.path.abspath(pattern), "", "")  # noqa: PTH100
    parts = head.split("/")
    fixed = next(index for index, part in enumerate(parts) if _is_wild(part))
    return place_of(("/".join(parts[:fixed]) or "/") + mark + query), "/".join(parts[fixed:])


def matching(place: Place, pattern: str) -> Iterator[Entry]:
    """The files below a folder that match, in sorted order.

    Raises:
        SourceError: if braces are misspelt, or a path without wildcards is not there.
    """
    matcher = Matcher(expanded(pattern))
    missing = {path for path in matcher.patterns if not any(map(_is_wild, path))}
    for entry in place.walk(matcher.takes):
        missing.discard(tuple(os.fsdecode(entry.path).split("/")))
        yield entry
    if missing:
        raise SourceError(f"{place}/{'/'.join(min(missing))} must exist, as {pattern} names it, got nothing there")


def expanded(pattern: str) -> list[str]:
    """What braces stand for, one after the other, as in a shell: `{00..11}` and `{a,b}`."""
    paths = list(islice(_expanded(pattern), MAX_PATHS + 1))
    if len(paths) > MAX_PATHS:
        raise SourceError(f"braces must stand for at most {MAX_PATHS:,} paths, got more: {pattern}; use *")
    return paths


def _expanded(pattern: str) -> Iterator[str]:
    match = BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for text in _alternatives(match[1]):
        yield from _expanded(pattern[: match.start()] + text + pattern[match.end() :])


def _alternatives(text: str) -> Iterator[str]:
    if (match := RANGE.fullmatch(text)) and int(match[1]) <= int(match[2]):
        width = len(match[1]) if match[1].startswith("0") or len(match[1]) == len(match[2]) else 0
        return (f"{number:0{width}}" for number in range(int(match[1]), int(match[2]) + 1))
    if "," in text:
        return iter(text.split(","))
    raise SourceError(f"braces must be a range such as {{000..099}} or a list such as {{a,b}}, got {{{text}}}")


class Matcher:
    """Tells for each name of each folder whether any pattern can match there."""

    def __init__(self, patterns: list[str]) -> None:
        self.patterns = {tuple(pattern.split("/")) for pattern in patterns}
        self._tails_of = lru_cache(maxsize=256)(self._find_tails)
        self._tests_of = lru_cache(maxsize=256)(self._make_tests)

    def takes(self, folder: bytes, name: bytes, is_folder: bool) -> bool:
        """Whether the name is a match, or a folder that may hold some."""
        return self._tests_of(folder, is_folder)(os.fsdecode(name))

    def matches(self, path: bytes) -> bool:
        """Whether a relative path is a match."""
        folder, _, name = path.rpartition(b"/")
        return self.takes(folder, name, False)

    def _find_tails(self, folder: bytes) -> frozenset[Parts]:
        """What can still follow below a folder: ends of patterns."""
        if not folder:
            return _with_empty_stars(self.patterns)
        parent, _, name = folder.rpartition(b"/")
        return _advanced(self._tails_of(parent), os.fsdecode(name))

    def _make_tests(self, folder: bytes, is_folder: bool) -> Callable[[str], bool]:
        tails = self._tails_of(folder)
        heads = {tail[0] for tail in tails if (len(tail) > 1 or tail[0] == "**" if is_folder else len(tail) == 1)}
        plain = {head for head in heads if not _is_wild(head)}
        wild = [_test(head) for head in heads - plain]
        return lambda name: name in plain or any(test(name) for test in wild)


def _advanced(tails: frozenset[Parts], name: str) -> frozenset[Parts]:
    below = {tail if tail[0] == "**" else tail[1:] for tail in tails if _test(tail[0])(name)}
    return _with_empty_stars({tail for tail in below if tail})


def _with_empty_stars(tails: set[Parts]) -> frozenset[Parts]:
    """`**` stands for no folder too."""
    found = set(tails)
    for tail in tails:
        while tail[0] == "**" and len(tail) > 1:
            tail = tail[1:]
            found.add(tail)
    return frozenset(found)


@lru_cache(maxsize=1024)
def _test(head: str) -> Callable[[str], bool]:
    if not _is_wild(head):
        return head.__eq__
    matches = re.compile(fnmatch.translate(head)).match
    if head.startswith("."):
        return lambda name: matches(name) is not None
    return lambda name: not name.startswith(".") and matches(name) is not None
