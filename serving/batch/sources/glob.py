"""The files that a pattern such as `photos/**/*.jpg` or `s3://bucket/{cats,dogs}/*.png` matches; see `patterns.py`."""

# ruff: noqa: D102 - the base class says what its methods do

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from serving.batch.source import Item, Shard, Source
from serving.batch.sources.folder import check_folder, existing, read_below
from serving.batch.sources.packing import not_empty, packed, unpacked
from serving.batch.sources.patterns import Matcher, expanded, matching, split
from serving.batch.sources.reading import source_errors


@dataclass(frozen=True)
class Glob(Source):
    """Files by a pattern; a file's key is its path relative to the folder down to which the pattern is fixed.

    Attributes:
        pattern: an absolute path or a URL with wildcards.
    """

    pattern: str

    @property
    def description(self) -> dict[str, Any]:
        return {"kind": "glob", "place": self.pattern}

    def shards(self, images: int) -> Iterator[Shard]:
        place, pattern = split(self.pattern)
        with source_errors(self.pattern):
            check_folder(place)
            shards = packed(matching(place, pattern), images)
            yield from not_empty(shards, self.pattern, "match at least one file")

    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        return read_below(split(self.pattern)[0], unpacked(shard), max_bytes)

    def find(self, keys: Collection[str], max_bytes: int) -> Iterator[Item]:
        place, pattern = split(self.pattern)
        matcher = Matcher(expanded(pattern))
        files = existing(place, keys, hidden=True)
        return read_below(place, (file for file in files if matcher.matches(file[1])), max_bytes)
