"""What is scored: a source gives its images in shards, the same ones in the same order whenever it is asked.

    source = open_source("photos/")                   # serving/batch/sources/ has a module a kind
    for shard in source.shards(4096):
        for key, image in source.read(shard, max_bytes): ...

A shard is small: it says where its images are and holds none. Sources and shards travel to other processes, and to
other machines that reach the same places.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.errors import ImageError, ServingError

SHARD_BYTES = 64 * 1024 * 1024  # a shard ends here too, where the sizes of images are known before they are read


class SourceError(ServingError):
    """A source as a whole is missing, empty or broken, or breaks off: what is done is kept, and nothing is made up."""

    code = "source_error"


class UnreadableFile(ImageError):
    """One image of a source cannot be read, and its neighbours can: it is not there, or may not be read."""

    code = "unreadable_file"


@dataclass(frozen=True)
class Shard:
    """Images that are scored together and become one part of the table.

    Attributes:
        where: what their source needs to read them, as plain JSON values.
        state: what shows that they are others now, such as a digest of names, sizes and times.
        images: how many; None if that shows only when they are read, which is so for a tar that is a stream.
    """

    where: dict[str, Any]
    state: str
    images: int | None


class Item(NamedTuple):
    """One image of a source.

    Attributes:
        key: its name; unique in the source, but where the names are the user's own and some are there twice.
        image: its encoded bytes; its pixels, uint8 (H, W, C) with C = 1 or 3, if the source holds those; or why it
            cannot be had.
    """

    key: str
    image: bytes | NDArray[np.uint8] | ServingError

    @property
    def image_bytes(self) -> int:
        """Memory that the image takes."""
        image = self.image
        return 0 if isinstance(image, ServingError) else len(image) if isinstance(image, bytes) else image.nbytes


class Source(ABC):
    """Images somewhere. A frozen dataclass of plain values."""

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Its kind, its place and what else was chosen, as plain JSON values: what a job is told by."""

    @abstractmethod
    def shards(self, images: int) -> Iterator[Shard]:
        """All images in shards, one after the other, however many there are.

        Args:
            images: of a shard, at most; one that can only be read as a stream has as many as the stream.

        Raises:
            SourceError: if the source is not there, has no images, or is broken; shards that came before stay valid.
        """

    @abstractmethod
    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        """The images of a shard, in order.

        Args:
            shard: one of `shards`.
            max_bytes: a larger encoded image becomes an `ImageTooLarge`, and is not read if its size shows before.

        Raises:
            SourceError: if the source breaks off, so that nobody can tell how the images are.
        """

    def find(self, keys: Collection[str], max_bytes: int) -> Iterator[Item]:
        """The images of some keys, in any order; keys that the source lacks are left out.

        A source that can go to an image directly does so; this one reads until it has found them all.
        """
        wanted = set(keys)
        for shard in self.shards(1024):
            for item in self.read(shard, max_bytes):
                if item.key in wanted:
                    wanted.remove(item.key)
                    yield item
                if not wanted:
                    return
