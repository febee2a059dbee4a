"""Larger images, sent to the same model: drawn ones as PNG, photos as JPEG.

    python -m load_tests growth --only pixels

One is asked about at a time. The work is what decoding takes, as the server decodes, and one call of the bare graph.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from load_tests.asked.sent_images import CAMERA_QUALITY, encoded, mosaic, shape
from load_tests.bare import Layout, bare_runtime, read_as_served
from load_tests.growth.curve import Reading, Shape
from load_tests.growth.dimension import Dimension, Rounds, Setting, rate, warm
from load_tests.served import served
from load_tests.wrk import ask
from serving.bundle import Bundle
from serving.cores import threads
from serving.settings import DEFAULT_SETTINGS

SIDES = (28, 64, 224, 1000, 4000)
CONNECTIONS = 1  # with two of the largest at a time, a batch would take longer than it may, and one would be refused
DRAWN, PHOTO = "drawn, PNG", "photo, JPEG"
X = "pixels a side"


def drawn(side: int) -> bytes:
    """A PNG of shapes that keep their places, whatever the size."""
    canvas = Image.new("RGB", (side, side), (40, 60, 90))
    pen, at = ImageDraw.Draw(canvas), side / 28
    pen.ellipse((3 * at, 4 * at, 18 * at, 16 * at), fill=(230, 180, 40))
    pen.rectangle((12 * at, 14 * at, 25 * at, 24 * at), fill=(60, 170, 110))
    pen.line((2 * at, 26 * at, 26 * at, 2 * at), fill=(250, 250, 250), width=max(1, round(at)))
    return encoded(np.asarray(canvas), "PNG")


def photo(side: int) -> bytes:
    """A JPEG with as much detail as a camera's."""
    return encoded(mosaic(side, side), "JPEG", quality=CAMERA_QUALITY)


KINDS = {DRAWN: drawn, PHOTO: photo}


def measure(setting: Setting, sides: Sequence[int] = SIDES) -> Rounds:
    """Ask about an image of each kind and side, and decode it right before."""
    bundle = Bundle.load(setting.bundle)
    files: dict[tuple[str, int], Path] = {}
    for kind, draw in KINDS.items():
        for side in sides:
            files[kind, side] = setting.folder / f"{kind[:5]}-{side}"
            files[kind, side].write_bytes(draw(side))
    layout = Layout(1, threads(DEFAULT_SETTINGS))
    with served(setting.bundle) as up:
        lasting = {at: warm(up.url(), file, CONNECTIONS, setting.seconds) for at, file in files.items()}
        while True:
            _, graph_ms = bare_runtime(bundle, layout, shape(bundle)[None], 1, setting.seconds)
            readings: list[Reading] = []
            for (kind, side), file in files.items():
                work = graph_ms / 1000 + _decoding_s(file, bundle, setting.seconds / 2)
                load = ask(up.url(), file, CONNECTIONS, lasting[kind, side])
                readings.append(rate(kind, side, load, lasting[kind, side], work))
            yield readings


def _decoding_s(file: Path, bundle: Bundle, seconds: float) -> float:
    """What decoding a file takes on one core, found in about so many seconds."""
    calls, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds or not calls:
        read_as_served(file, bundle.manifest.input)
        calls += 1
    return taken / calls


DIMENSION = Dimension(
    "pixels",
    "images of 28 to 4,000 pixels a side",
    tuple(Shape(kind, X, "answers/s", "time of decoding and bare graph", is_rate=True) for kind in KINDS),
    measure,
    asks=18,
    once_s=35,
)
