"""Images that stay in their files until they are needed: a lazy sequence, decoded in parallel a little ahead.

    for batch in images.split(64):  # uint8 (n, channels, H, W)
        ...

`Images` are what a data set holds: a tensor, or `ImageFiles`. Whatever goes through all of them asks for `split`;
`in_memory` is for a few, or for a training on pixels.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from serving.bundle import InputSpec
from serving.cores import cores
from serving.decode import open_image
from serving.errors import ImageError, ImageTooLarge
from serving.limits import Limits
from serving.preprocess import read_open_image
from training.progress import track

TRUSTED = Limits(max_bytes=1 << 28, max_pixels=1 << 28, max_side=1 << 28)  # the user's files, not a stranger's
AHEAD = 4  # images a thread that may wait, decoded, for whoever takes them
PIXELS_AT_ONCE = 64_000_000  # decoded at the same time, as a server counts them; a larger image is decoded alone
DIGEST_BYTES = 16
BATCH_PIXELS = 64 * 224 * 224  # a gigabyte of ResNet-18's activations

Pixels = NDArray[np.uint8]
Decoded = Pixels | ImageError | OSError


@dataclass(frozen=True)
class ImageFiles:
    """Image files that are known to be readable.

    Attributes:
        folder: where they are.
        names: their paths inside it.
        input: how a file becomes pixels.
        digests: of their pixels, uint8 (N, 16), as `digests_of` makes them.
        thumbnails: of their pixels, float16 (N, channels * 64), as training/duplicates.py makes them.
        shards: how many consecutive files each shard of the index has (training/index.py); none of a selection.
    """

    folder: Path
    names: tuple[str, ...] = field(repr=False)
    input: InputSpec
    digests: NDArray[np.uint8] = field(repr=False)
    thumbnails: NDArray[np.float16] = field(repr=False)
    shards: tuple[int, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, channels, height, width."""
        return len(self.names), self.input.channels, self.input.height, self.input.width

    def __getitem__(self, positions: Tensor) -> "ImageFiles":
        """A selection, still in its files."""
        chosen = positions.numpy()
        names = tuple(self.names[position] for position in chosen.tolist())
        digests, thumbnails = self.digests[chosen], self.thumbnails[chosen]
        return replace(self, names=names, digests=digests, thumbnails=thumbnails, shards=())

    def split(self, count: int) -> Iterator[Tensor]:
        """Decode them, uint8 (n, channels, H, W) with n = `count` but in the last batch.

        Raises:
            ImageError: if a file cannot be read any more.
        """
        decoded = decode_files((self.folder / name for name in self.names), self.input)
        names = iter(self.names)
        while batch := [_readable(image, self.folder / next(names)) for image in islice(decoded, count)]:
            yield torch.from_numpy(np.stack(batch))


Images = Tensor | ImageFiles


def in_memory(images: Images) -> Tensor:
    """All of them decoded, uint8 (N, channels, H, W).

    Raises:
        ImageError: if a file cannot be read any more.
    """
    if isinstance(images, Tensor):
        return images
    whole = torch.empty(images.shape, dtype=torch.uint8)
    for position, image in enumerate(track(images.split(1), f"reading {images.folder}", total=len(images))):
        whole[position] = image[0]
    return whole


def digests_of(images: Images) -> NDArray[np.uint8]:
    """The BLAKE2b digest of each image's pixels, uint8 (N, 16)."""
    if isinstance(images, ImageFiles):
        return images.digests
    pixels = images.contiguous().numpy()
    whole = b"".join(hashlib.blake2b(one.data, digest_size=DIGEST_BYTES).digest() for one in pixels)
    return np.frombuffer(whole, np.uint8).reshape(len(images), DIGEST_BYTES)


def images_at_once(spec: InputSpec, most: int = 64) -> int:
    """How many images of a size make a batch: `most`, or less where they are large."""
    return max(1, min(most, BATCH_PIXELS // (spec.height * spec.width)))


def decode_files(files: Iterable[Path], spec: InputSpec) -> Iterator[Decoded]:
    """Decode files as a server does, on a thread a core, at most `AHEAD` images a thread before they are taken.

    Args:
        files: in order.
        spec: what is made of them.

    Yields:
        In the same order, pixels (channels, height, width), or why there are none.
    """
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit: TRUSTED has ours, and a large JPEG is not decoded whole
    budget, waiting, threads = _PixelBudget(), deque[Future[Decoded]](), cores()
    pool, remaining = ThreadPoolExecutor(threads), iter(files)
    try:
        waiting.extend(pool.submit(_decode, file, spec, budget) for file in islice(remaining, AHEAD * threads))
        while waiting:
            image = waiting.popleft().result()
            waiting.extend(pool.submit(_decode, file, spec, budget) for file in islice(remaining, 1))
            yield image
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(file: Path, spec: InputSpec, budget: "_PixelBudget") -> Decoded:
    try:
        if (size := file.stat().st_size) > TRUSTED.max_bytes:
            return ImageTooLarge(f"image must have at most {TRUSTED.max_bytes} bytes, got {size}")
        opened = open_image(file.read_bytes(), TRUSTED)
        with budget.held(opened.counted_pixels):
            return read_open_image(opened, spec)
    except (ImageError, OSError) as exc:
        return exc


def _readable(image: Decoded, file: Path) -> Pixels:
    if isinstance(image, Exception):
        raise ImageError(
            f"{file} must stay as it was when the command began, got {image}: leave the folder alone until it is done"
        ) from image
    return image


class _PixelBudget:
    """How many pixels may still be decoded at the same time."""

    def __init__(self) -> None:
        self._left, self._changed = PIXELS_AT_ONCE, threading.Condition()

    @contextmanager
    def held(self, pixels: int) -> Iterator[None]:
        """Wait for so many, or for all of them if that is less, and hold them."""
        taken = min(pixels, PIXELS_AT_ONCE)
        with self._changed:
            self._changed.wait_for(lambda: taken <= self._left)
            self._left -= taken
        try:
            yield
        finally:
            with self._changed:
                self._left += taken
                self._changed.notify_all()
