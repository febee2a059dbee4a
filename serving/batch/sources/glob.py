"""The files that a pattern such as `photos/**/*.jpg` or `s3://bucket/{cats,dogs}/*.png` matches; see `patterns.py`."""

# ruff: noqa: D102 - the base class says what its methods do

from collections.abc import Collection, Iterator

from serving.batch.source import Item, Shard
from serving.batch.sources.folder import check_folder, existing, read_below
from serving.batch.sources.packing import packed, unpacked
from serving.batch.sources.patterns import Matcher, expanded, matching, split
from serving.batch.sources.placed import PlacedSource


class Glob(PlacedSource):
    """Files by a pattern; a file's key is its path relative to the folder down to which the pattern is fixed."""

    kind = "glob"
    must = "match at least one file"

    def _shards(self, images: int) -> Iterator[Shard]:
        place, pattern = split(self.place)
        check_folder(place)
        yield from packed(matching(place, pattern), images)

    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        return read_below(split(self.place)[0], unpacked(shard), max_bytes)

    def find(self, keys: Collection[str], max_bytes: int) -> Iterator[Item]:
        place, pattern = split(self.place)
        matcher = Matcher(expanded(pattern))
        files = existing(place, keys, hidden=True)
        return read_below(place, (file for file in files if matcher.matches(file[1])), max_bytes)
