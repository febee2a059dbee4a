"""Images that are pixels already: NumPy's `.npy`, (N, H, W) or (N, H, W, C) in uint8, and MNIST's IDX, also as `.gz`.

A shard is a range of images. They are read a megabyte at a time rather than mapped into memory, so that a file cut
short is an error and not the end of the process.
"""

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from serving.batch.places import Place
from serving.batch.source import SHARD_BYTES, Item, Shard, SourceError
from serving.batch.sources.inputs import file_of, input_place, inputs, is_compressed, opened
from serving.batch.sources.packing import bytes_of, key_of, state_of
from serving.batch.sources.placed import PlacedSource
from serving.batch.sources.reading import source_errors

SUFFIXES = (".npy", "idx3-ubyte", "idx3-ubyte.gz")  # labels are idx1
READ_BYTES = 1024 * 1024
IDX_UINT8 = b"\0\0\x08"  # then the number of dimensions


@dataclass(frozen=True)
class _Layout:
    """Where the images of a file begin, how many there are, and the shape (H, W, C) of each."""

    offset: int
    images: int
    shape: tuple[int, int, int]

    @property
    def image_bytes(self) -> int:
        return prod(self.shape)


class Array(PlacedSource):
    """Images of an array, of those in a folder, or of those of a pattern; a key is `FILE#INDEX`, counted from 0."""

    kind = "array"
    must = "hold at least one image"

    def _shards(self, images: int) -> Iterator[Shard]:
        root, entries = inputs(self.place, SUFFIXES)
        for entry in entries:
            file = file_of(entry)
            place = input_place(root, file)
            with opened(place) as content:
                layout = _layout(content, str(place))
            if not is_compressed(place) and entry.size is not None:
                _check_whole(place, layout, entry.size)
            state = state_of([entry])
            step = min(images, max(1, SHARD_BYTES // layout.image_bytes))
            for first in range(0, layout.images, step):
                count = min(step, layout.images - first)
                yield Shard({"file": file, "first": first}, state, count)

    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        """As `Source.read`; `max_bytes` is of encoded images and limits none of these."""
        root, _ = inputs(self.place, SUFFIXES)
        file, first, count = shard.where["file"], shard.where["first"], shard.images or 0
        name, place = key_of(bytes_of(file)), input_place(root, file)
        with source_errors(str(place)), opened(place) as content:
            layout = _layout(content, str(place))
            step = max(1, READ_BYTES // layout.image_bytes)
            content.seek(layout.offset + first * layout.image_bytes)
            for start in range(first, first + count, step):
                size = min(step, first + count - start) * layout.image_bytes
                data = content.read(size)
                if len(data) < size:
                    raise SourceError(f"{place} must have {layout.images} images, got a file that breaks off: {start}")
                for index, pixels in enumerate(np.frombuffer(data, np.uint8).reshape(-1, *layout.shape), start):
                    yield Item(f"{name}#{index}", pixels)

    def find(self, keys: Collection[str], max_bytes: int) -> Iterator[Item]:
        """As `Source.find`, each image read at its place."""
        root, entries = inputs(self.place, SUFFIXES)
        for entry in entries:
            file, prefix = file_of(entry), key_of(entry.path) + "#"
            indices = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
            with source_errors(self.place), opened(input_place(root, file)) as content:
                images = _layout(content, file).images if indices else 0
            for index in sorted(int(text) for text in indices if text.isdecimal() and int(text) < images):
                yield from self.read(Shard({"file": file, "first": index}, "", 1), max_bytes)


def _check_whole(place: Place, layout: _Layout, size: int) -> None:
    needed = layout.offset + layout.images * layout.image_bytes
    if size < needed:
        raise SourceError(f"{place} must have {needed} bytes for its {layout.images} images, got {size}: copy it again")


def _layout(file: BinaryIO, what: str) -> _Layout:
    """Read a file's header."""
    start = file.read(4)
    file.seek(0)
    try:
        shape = _idx_shape(file) if start.startswith(IDX_UINT8) else _npy_shape(file)
    except (ValueError, struct.error) as exc:
        raise SourceError(f"{what} must be a .npy or IDX file of uint8 images, got something else: {exc}") from exc
    if len(shape) == 3:
        shape = (*shape, 1)
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape[1:]:
        raise SourceError(f"{what} must have the shape (N, H, W) or (N, H, W, C) with C = 1 or 3, got {shape}")
    return _Layout(file.tell(), shape[0], shape[1:])


def _idx_shape(file: BinaryIO) -> tuple[int, ...]:
    """As the page on MNIST describes it: two zeros, the type, the number of dimensions, and their sizes, big-endian."""
    dimensions = file.read(4)[3]
    return struct.unpack(f">{dimensions}I", file.read(4 * dimensions))


def _npy_shape(file: BinaryIO) -> tuple[int, ...]:
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(file))
    if read is None:
        raise ValueError("its version is unknown")
    shape, fortran, dtype = read(file)
    if fortran and len(shape) > 1:
        raise ValueError("its order is Fortran's; save numpy.ascontiguousarray of it")
    if dtype != np.uint8:
        raise ValueError(f"it holds {dtype}; save it as uint8, 0 to 255")
    return tuple(shape)
