"""Bytes from strangers: ten thousand damaged images and five thousand damaged requests, and only documented errors."""

import json
import random
from collections import Counter

import numpy as np
import pytest
from conftest import encoded

from serving.bundle import InputSpec
from serving.errors import BadRequest, ImageError, ServingError
from serving.limits import Limits
from serving.preprocess import read_image
from serving.request import Message, read

IMAGES, REQUESTS = 10_000, 5_000
LIMITS = Limits(max_bytes=1_000_000, max_pixels=1_000_000)
SPECS = [InputSpec(channels=1, height=8, width=8), InputSpec(channels=3, height=16, width=12, resize="stretch")]
INTERESTING = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"IDAT", b"IEND", b"\xff\xd9", b"VP8X")


def seeds() -> list[bytes]:
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)
    pictures = [rng.integers(0, 256, (24, 31, 3), dtype=np.uint8), np.stack([smooth] * 3, 2), smooth]
    pictures.append(rng.integers(0, 256, (9, 7, 4), dtype=np.uint8))
    made = [encoded(picture) for picture in pictures]
    made += [encoded(picture, "JPEG", quality=70, progressive=n == 1) for n, picture in enumerate(pictures[:3])]
    made += [encoded(picture, "WebP", lossless=n == 0) for n, picture in enumerate(pictures)]
    return made


def mutated(data: bytes, random_: random.Random) -> bytes:
    """Some bytes flipped, cut out, doubled or replaced."""
    body = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        at = random_.randrange(len(body)) if body else 0
        match random_.randrange(6):
            case 0:
                body[at : at + 1] = bytes([random_.randrange(256)])
            case 1:
                body[at : at + random_.randrange(1, 20)] = b""
            case 2:
                body[at:at] = body[at : at + random_.randrange(1, 20)]
            case 3:
                del body[at:]
            case 4:
                piece = random_.choice(INTERESTING)
                body[at : at + len(piece)] = piece
            case 5:
                body[at : at + 1] = bytes([(body[at] if at < len(body) else 0) ^ (1 << random_.randrange(8))])
    return bytes(body)


def test_damaged_images_are_answered_or_refused() -> None:
    random_, ends = random.Random(0), Counter[str]()
    good = seeds()
    for n in range(IMAGES):
        data, spec = mutated(random_.choice(good), random_), SPECS[n % len(SPECS)]
        try:
            image = read_image(data, spec, LIMITS)
        except ImageError as error:
            ends[error.code] += 1
            continue
        assert (image.shape, image.dtype) == ((spec.channels, spec.height, spec.width), np.uint8)
        ends["answered"] += 1
    assert set(ends) == {"answered", "undecodable_image", "unsupported_image_type", "image_too_large"}
    assert min(ends.values()) >= IMAGES // 1000


BODIES = [
    b'{"instances": [{"b64": "aGVsbG8="}], "parameters": {"top_k": 2, "return": ["features"]}}',
    b'{"instances": [{"b64": "aGVsbG8="}], "parameters": {"coverage": 0.9, "atypical_below": 0.01, "accept": '
    b'{"probability": 0.9, "typicality": 0.05}, "priors": {"cat": 0.25, "dog": 0.75}}}',
    b'{"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": ["aGVsbG8="]}], "id": "7"}',
    b'{"inputs": [{"name": "images", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 9}}]}'
    b"\x05\x00\x00\x00hello",
]
WORDS = (
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b'"x"',
    b"true",
    b"[[[[",
    b"\xff",
    b'"instances"',
    b'"inputs"',
    b"9" * 40,
)


@pytest.mark.parametrize("json_length", [None, "110", "0", "x"])
def test_damaged_requests_are_read_or_refused(json_length: str | None) -> None:
    random_, ends = random.Random(1), Counter[str]()
    for _ in range(REQUESTS):
        body = mutated(random_.choice(BODIES), random_)
        if random_.random() < 0.5:
            at = random_.randrange(len(body) + 1)
            body = body[:at] + random_.choice(WORDS) + body[at + random_.randrange(8) :]
        kind = random_.choice(("", "application/json"))
        in_form = Message(parts={"data": b"", "parameters": body})
        message = Message(body, content_type=kind, json_length=json_length) if random_.random() < 0.8 else in_form
        try:
            request = read(message)
        except BadRequest as error:
            ends[error.code] += 1
            continue
        images = request.images
        status, answer = request.reply(images if isinstance(images, ServingError) else [ImageError("x")] * len(images))
        json.dumps(answer)
        ends[str(status)] += 1
    assert set(ends) <= {"bad_request", "bad_parameter", "200", "400"}
    assert len(ends) >= 2
