"""The images of a table by their keys, in the source that it was made of or another place.

    images = Images.of(rows, described, address=None)
    for item in images.find(["cat/1.jpg", "cat/2.jpg"]): ...

A source is asked for many keys at once, since finding one in a tar takes as long as finding all.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from serving.batch.places import place_of
from serving.batch.source import Item, Source, SourceError, UnreadableFile
from serving.batch.sources import open_source, source_of
from serving.batch.sources.patterns import is_pattern
from serving.console.table.rows import Rows
from serving.errors import ServingError
from serving.limits import DEFAULT_LIMITS

ANY_NAMES = ("parquet", "tar")  # kinds of sources where two images may have the same key


@dataclass(frozen=True)
class Images:
    """Where the images of a table are.

    Attributes:
        rows: of the table.
        source: None if nobody knows.
        reason: why nobody does.
    """

    rows: Rows
    source: Source | None
    reason: str = ""

    @classmethod
    def of(cls, rows: Rows, described: dict[str, Any] | None, address: str | None) -> "Images":
        """Find out where they are.

        Args:
            rows: of the table.
            described: the source, as the table describes it; None if it does not.
            address: where they are, if not where the table says.

        Raises:
            ServingError: if the address that was given has no images. A place that only the table names may be gone.
        """
        if address is not None:
            return cls(rows, open_source(address))
        if described is None:
            return cls(rows, None, "the table does not say where its images are: name the place with --images")
        try:
            source = source_of(described)
            is_there = is_pattern(described["place"]) or place_of(described["place"]).exists()
        except (ServingError, OSError, KeyError, TypeError):  # the table may describe anything
            is_there = False
        if not is_there:
            return cls(rows, None, "the images are not where the table says any more: name their place with --images")
        return cls(rows, source)

    def find(self, keys: Collection[str]) -> Iterator[Item]:
        """All of the images, in any order; one that cannot be had is the reason why.

        Raises:
            SourceError: if the source as a whole is not there, or breaks off.
        """
        left = dict.fromkeys(keys)
        try:
            for item in self._found(keys):
                if item.key in left:
                    left.pop(item.key)
                    yield item
        except (SourceError, OSError) as exc:
            raise SourceError(self._without_folder(str(exc))) from exc
        for key in left:
            yield Item(key, UnreadableFile("image must be in the source, got none of this name: was it moved?"))

    def _found(self, keys: Collection[str]) -> Iterator[Item]:
        if self.source is None:
            raise SourceError(self.reason)
        several = self._several(keys)
        for key, count in several.items():
            yield Item(key, UnreadableFile(f"image must have a key of its own, got one that stands {count} times"))
        yield from self.source.find([key for key in keys if key not in several], DEFAULT_LIMITS.max_bytes)

    def _several(self, keys: Collection[str]) -> dict[str, int]:
        """Keys of more than one row, where nobody can tell which image is meant."""
        if self.source is None or self.source.description.get("kind") not in ANY_NAMES:
            return {}
        return {key: count for key, count in self.rows.counts_of(keys).items() if count > 1}

    def _without_folder(self, text: str) -> str:
        """A message without where on this machine the source is, which no page needs to hold."""
        place = self.source.description.get("place", "") if self.source is not None else ""
        return text.replace(place.rpartition("/")[0] + "/", "") if place.startswith("/") else text
