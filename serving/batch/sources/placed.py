"""What all kinds of sources share: they are at one place, and must have something in it."""

# ruff: noqa: D102 - the base class says what its methods do

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from serving.batch.source import Shard, Source, SourceError
from serving.batch.sources.reading import source_errors


@dataclass(frozen=True)
class PlacedSource(Source):
    """A source at a place.

    Attributes:
        kind: its name in `KINDS`.
        must: what it must do so as not to be empty, for messages: "hold at least one image".
        place: an absolute path or a URL; what it may be of, each kind says.
    """

    kind: ClassVar[str]
    must: ClassVar[str]

    place: str

    @property
    def description(self) -> dict[str, Any]:
        return {"kind": self.kind, "place": self.place}

    def shards(self, images: int) -> Iterator[Shard]:
        shard = None
        with source_errors(self.place):
            for shard in self._shards(images):
                yield shard
        if shard is None:
            raise SourceError(f"{self.place} must {self.must}, got none")

    @abstractmethod
    def _shards(self, images: int) -> Iterator[Shard]:
        """The shards; none if there is nothing at the place."""
