"""The images of all requests of a batch: headers → limits → what they will take → pixels, as far as there is time.

    intake = Intake(manifest.input, limits, threads=2)
    [arrays] = intake.decode([[image]], [pace], allowance)

The headers of all images are read before one is decoded, and the requests that take least are decoded first. A request
that asks for too much, or that there is no time for, is refused whole, and none of its images has been decoded then.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.budget import CHECK_S, IMAGE_S, OPEN_S, PIXEL_S, Allowance, Pace
from serving.bundle import InputSpec
from serving.decode import OpenImage, open_image
from serving.errors import ImageTooLarge, Overloaded, ServingError
from serving.limits import Limits
from serving.preprocess import read_open_image

PHOTO_PIXELS = 64 * 1024  # from here on an image takes longer to decode than a thread to be told of it

Images = Sequence[bytes | ServingError] | ServingError
Decoded = NDArray[np.uint8] | ServingError
Opened = OpenImage | ServingError


@dataclass(frozen=True)
class _Request:
    """The images of a request, opened, and how long they will take to decode and, that done, to be answered."""

    images: list[Opened]
    decoding_s: float
    computing_s: float


class Intake:
    """Opens and decodes images.

    Args:
        spec: what they are made into.
        limits: bytes and pixels of one image, and pixels of those of one request.
        threads: that decode photos; None leaves that to the caller.
    """

    def __init__(self, spec: InputSpec, limits: Limits, threads: int | None) -> None:
        self._spec = spec
        self._limits = limits
        self._threads = threads or 1
        self._decoders = ThreadPoolExecutor(self._threads) if self._threads > 1 else None

    def decode(
        self, requests: Sequence[Images], paces: Sequence[Pace], allowance: Allowance
    ) -> list[list[Decoded] | ServingError]:
        """Decode the images of several requests.

        Args:
            requests: the images of each; an error instead of them, or of one of them, is passed through.
            paces: what an image of each request takes once it is decoded.
            allowance: what all of it may take.

        Returns:
            The images, (channels, height, width), or errors of each request; or the error of the whole.
        """
        smallest_first = sorted(range(len(requests)), key=lambda n: _bytes_of(requests[n]))
        opened = {n: self._open_request(requests[n], paces[n], allowance) for n in smallest_first}
        return self._decode_all([opened[n] for n in range(len(requests))], allowance)

    def _open_request(self, images: Images, pace: Pace, allowance: Allowance) -> _Request | ServingError:
        """Read the headers of a request's images, if they can be answered in time."""
        if isinstance(images, ServingError):
            return images
        if _is_too_long(len(images), IMAGE_S + pace.least_s, allowance):
            return _takes_too_long(len(images), IMAGE_S + pace.least_s, allowance)
        if not allowance.lets_read(OPEN_S * len(images) + CHECK_S * _bytes_of(images)):
            return Overloaded()
        opened = self._open_all(images)
        if isinstance(opened, ServingError):
            return opened
        decoding_s = self._decoding_s(opened)
        image_s = decoding_s / len(images) + pace.least_s if images else 0
        if _is_too_long(len(images), image_s, allowance):
            return _takes_too_long(len(images), image_s, allowance)
        return _Request(opened, decoding_s, pace.lately_s * len(images))

    def _open_all(self, images: Sequence[bytes | ServingError]) -> list[Opened] | ServingError:
        """Read the headers of a request's images, until there are more pixels than it may have."""
        opened: list[Opened] = []
        pixels, most = 0, self._limits.max_request_pixels
        for image in images:
            opened.append(self._open(image))
            pixels += _pixels_of(opened[-1])
            if pixels > most:
                return ImageTooLarge(
                    f"images of one request must count at most {most} pixels together, got {pixels} by "
                    f"image {len(opened)} of {len(images)}: send fewer or smaller ones at a time"
                )
        return opened

    def _decoding_s(self, images: Sequence[Opened]) -> float:
        each = [IMAGE_S + PIXEL_S * _pixels_of(image) for image in images]
        return max(max(each, default=0), sum(each) / self._threads)

    def _decode_all(
        self, opened: Sequence[_Request | ServingError], allowance: Allowance
    ) -> list[list[Decoded] | ServingError]:
        """Decode side by side what takes long: Pillow holds Python's lock for all else than the pixels."""
        requests = {n: one for n, one in enumerate(opened) if isinstance(one, _Request)}
        photos = sum(_is_photo(image) for one in requests.values() for image in one.images)
        pool = self._decoders if photos > 1 else None
        begun: dict[int, list[Decoded | Future[Decoded]]] = {}
        ahead_s, aside_s, running = 0.0, 0.0, list[Future[Decoded]]()
        for n, one in sorted(requests.items(), key=lambda item: item[1].decoding_s + item[1].computing_s):
            needed_s = one.decoding_s + one.computing_s
            if not allowance.grants(needed_s, ahead_s + aside_s):
                wait(running)
                aside_s, running = 0.0, []
                if not allowance.grants(needed_s, ahead_s):
                    continue
            begun[n] = [self._begin(image, pool) for image in one.images]
            running += [item for item in begun[n] if isinstance(item, Future)]
            aside_s += one.decoding_s if running else 0
            ahead_s += one.computing_s
        return [_finished(begun[n]) if n in begun else _refusal(one) for n, one in enumerate(opened)]

    def _begin(self, image: Opened, pool: ThreadPoolExecutor | None) -> Decoded | Future[Decoded]:
        return self._decode(image) if pool is None or not _is_photo(image) else pool.submit(self._decode, image)

    def _open(self, image: bytes | ServingError) -> Opened:
        try:
            return image if isinstance(image, ServingError) else open_image(image, self._limits)
        except ServingError as error:
            return error

    def _decode(self, image: Opened) -> Decoded:
        try:
            return image if isinstance(image, ServingError) else read_open_image(image, self._spec)
        except ServingError as error:
            return error


def _is_too_long(count: int, image_s: float, allowance: Allowance) -> bool:
    """One image is always taken, whatever it takes."""
    return count > 1 and count * image_s > allowance.request_s


def _takes_too_long(count: int, image_s: float, allowance: Allowance) -> ImageTooLarge:
    fewer = max(1, int(allowance.request_s / image_s))
    return ImageTooLarge(
        f"images of one request must take this server at most {allowance.request_s:g} s, got {count} images that may "
        f"take {count * image_s:.1f} s: send at most {fewer} such images at a time"
    )


def _bytes_of(images: Images) -> int:
    return 0 if isinstance(images, ServingError) else sum(len(image) for image in images if isinstance(image, bytes))


def _pixels_of(image: Opened) -> int:
    return 0 if isinstance(image, ServingError) else image.counted_pixels


def _is_photo(image: Opened) -> bool:
    return _pixels_of(image) >= PHOTO_PIXELS


def _finished(images: Sequence[Decoded | Future[Decoded]]) -> list[Decoded]:
    return [image.result() if isinstance(image, Future) else image for image in images]


def _refusal(one: _Request | ServingError) -> ServingError:
    return one if isinstance(one, ServingError) else Overloaded()
