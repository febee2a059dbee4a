"""More models in one server: the same bundle under other names.

    python -m load_tests growth --only models

One of them is asked, as if the others were not there, over few connections and over more, for the memory for requests
that wait is shared among the models; then all in turn, so that each gets a share of the requests.
"""

from collections.abc import Sequence
from pathlib import Path

import psutil

from load_tests.asked.sent_images import Sent, encode_image
from load_tests.growth.curve import Reading, Shape
from load_tests.growth.dimension import Dimension, Rounds, Setting, rate, renamed, warm
from load_tests.memory import tree_bytes
from load_tests.served import Served, served
from load_tests.wrk import ask
from serving.bundle import Bundle

COUNTS = (1, 4, 16)
CONNECTIONS, MORE = 8, 32
MODELS = "models in one server"
MEMORY, READY, ALL = "memory", "time to ready", "all asked in turn"
ONE, CROWD = (f"one asked, {count} connections" for count in (CONNECTIONS, MORE))


def measure(setting: Setting, counts: Sequence[int] = COUNTS) -> Rounds:
    """Start a server of each number of models anew in every round."""
    image = setting.folder / "image"
    image.write_bytes(encode_image(Sent.shape, Bundle.load(setting.bundle)))
    copies = [renamed(setting.bundle, f"model-{number:02}", setting.folder) for number in range(max(counts))]
    while True:
        readings: list[Reading] = []
        for count in counts:
            with served(*copies[:count]) as up:
                readings += _asked(up, count, image, setting.seconds)
        yield readings


def _asked(up: Served, count: int, image: Path, seconds: int) -> Sequence[Reading]:
    names = up.server.models
    one, paths = up.url(names[0]), [f"/predictions/{name}" for name in names]
    warm(one, image, CONNECTIONS, seconds)
    return (
        rate(ONE, count, ask(one, image, CONNECTIONS, seconds), seconds),
        rate(CROWD, count, ask(one, image, MORE, seconds), seconds),
        rate(ALL, count, ask(one, image, CONNECTIONS, seconds, paths=paths), seconds),
        Reading(MEMORY, count, memory_bytes(up) / 1e6, count),
        Reading(READY, count, up.ready_s, count),
    )


def memory_bytes(up: Served) -> int:
    """PSS of all of a server's processes."""
    return sum(tree_bytes(psutil.Process(pid)) for pid in (up.server.pid, up.server.keeper.pid))


DIMENSION = Dimension(
    "models",
    "1, 4 and 16 models in one server",
    (
        Shape(MEMORY, MODELS, "MB", "models"),
        Shape(READY, MODELS, "s", "models"),
        Shape(ONE, MODELS, "answers/s", "none", is_rate=True),
        Shape(CROWD, MODELS, "answers/s", "none", is_rate=True),
        Shape(ALL, MODELS, "answers/s", "none", is_rate=True),
    ),
    measure,
    asks=14,
    starts=len(COUNTS) + 1,  # 16 models take their time
)
