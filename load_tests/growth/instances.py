"""More images in a request: JSON with 1 to 256 of them, as many as a request may have by default.

python -m load_tests growth --only instances
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from load_tests.asked.sent_images import Sent, encode_image
from load_tests.growth.curve import Shape
from load_tests.growth.dimension import Dimension, Rounds, Setting, rate, warm
from load_tests.served import served
from load_tests.wrk import ask
from serving.bundle import Bundle

COUNTS = (1, 8, 64, 256)
CONNECTIONS = 2  # one request waits while another is computed
NAME = "requests"


def measure(setting: Setting, counts: Sequence[int] = COUNTS) -> Rounds:
    """Send requests of each number of images."""
    image = encode_image(Sent.shape, Bundle.load(setting.bundle))
    bodies = {count: _body(image, count, setting.folder) for count in counts}
    with served(setting.bundle) as up:
        lasting = {count: warm(up.url(), body, CONNECTIONS, setting.seconds) for count, body in bodies.items()}
        while True:
            yield [
                rate(NAME, count, ask(up.url(), body, CONNECTIONS, lasting[count]), lasting[count], work=count)
                for count, body in bodies.items()
            ]


def _body(image: bytes, count: int, folder: Path) -> Path:
    file = folder / f"{count}.json"
    file.write_text(json.dumps({"instances": [{"b64": base64.b64encode(image).decode()}] * count}))
    return file


DIMENSION = Dimension(
    "instances",
    "1 to 256 images a request",
    (Shape(NAME, "images a request", "requests/s", "images", is_rate=True),),
    measure,
    asks=6,
    once_s=20,
)
