"""One core and two: a server, with default settings, and its load on so many of the machine's cores.

    python -m load_tests growth --only cores

Twice the cores are half the work for each of them.
"""

import os
from collections.abc import Sequence

from load_tests.asked.sent_images import Sent, encode_image
from load_tests.growth.curve import Reading, Shape
from load_tests.growth.dimension import Dimension, Rounds, Setting, on_cores, rate, warm
from load_tests.served import served
from load_tests.wrk import ask
from serving.bundle import Bundle

COUNTS = (1, 2)
CONNECTIONS = {"8 connections": 8, "32 connections": 32}


def measure(setting: Setting, counts: Sequence[int] = COUNTS) -> Rounds:
    """Start a server on each number of cores anew in every round; more than there are are left out."""
    image = setting.folder / "image"
    image.write_bytes(encode_image(Sent.shape, Bundle.load(setting.bundle)))
    there = [count for count in counts if count <= len(os.sched_getaffinity(0))]
    while True:
        readings: list[Reading] = []
        for count in there:
            with on_cores(count), served(setting.bundle) as up:
                warm(up.url(), image, max(CONNECTIONS.values()), setting.seconds)
                for name, connections in CONNECTIONS.items():
                    load = ask(up.url(), image, connections, setting.seconds)
                    readings.append(rate(name, count, load, setting.seconds, work=1 / count))
        yield readings


DIMENSION = Dimension(
    "cores",
    "one core and two",
    tuple(Shape(name, "cores", "answers/s", "1 / cores", is_rate=True) for name in CONNECTIONS),
    measure,
    asks=6,
    starts=len(COUNTS),
)
