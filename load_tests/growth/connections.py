"""More connections that ask at a time, each again as soon as it is answered.

    python -m load_tests growth --only connections

No answer is more work than another, so answers a second should not fall; but each waits for those before it, so that
its latency grows at best with the connections.
"""

import time
from collections.abc import Sequence

from load_tests.asked.sent_images import Sent, encode_image
from load_tests.growth.curve import Reading, Shape
from load_tests.growth.dimension import Dimension, Rounds, Setting, failed, rate, warm
from load_tests.served import served
from load_tests.wrk import ask
from serving.bundle import Bundle

COUNTS = (1, 8, 32, 128, 512)
SETTLE_S = 1  # in which what clients that have gone were waiting for is computed
ANSWERS, P99 = "answers", "p99"
X = "connections"


def measure(setting: Setting, counts: Sequence[int] = COUNTS) -> Rounds:
    """Ask over each number of connections."""
    image = setting.folder / "image"
    image.write_bytes(encode_image(Sent.shape, Bundle.load(setting.bundle)))
    with served(setting.bundle) as up:
        for count in counts:
            warm(up.url(), image, count, setting.seconds)
        while True:
            readings: list[Reading] = []
            for count in counts:
                time.sleep(SETTLE_S)
                load = ask(up.url(), image, count, setting.seconds)
                readings.append(rate(ANSWERS, count, load, setting.seconds))
                readings.append(Reading(P99, count, load.p99, count, failed(load, setting.seconds)))
            yield readings


DIMENSION = Dimension(
    "connections",
    "1 to 512 connections",
    (Shape(ANSWERS, X, "answers/s", "none", is_rate=True), Shape(P99, X, "ms", "connections")),
    measure,
    asks=6,
    once_s=25,
)
