"""The three changes that are made to TorchServe, in copies of classes that its Java finds before its own.

A worker gets at once whatever has gathered while it was busy. TorchServe waits for a batch to fill in whole
milliseconds, and told to wait 0 it takes two requests at most. Told to wait 1, which it must be, it has a lone request
wait for nothing a third of what a small model takes to answer. In the copy, 1 is a microsecond.

How long requests wait in the queue is known in seconds, which are what the buckets of its histograms (`metrics.yaml`)
are made for. TorchServe counts microseconds, all of which would land in the last bucket.

Whoever meets a full queue is told so. TorchServe's words are that there is no worker, and how to add one.
"""

import hashlib
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ServerError

VERSION = "0.12.0"
JAR = "ts/frontend/model-server.jar"
MAX_BATCH_DELAY = 1  # in TorchServe's unit
REFUSAL = (
    '" has no worker to serve inference request. Please use scale workers API to add workers. If this is a sequence '
    "inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
)
CLEAR_REFUSAL = '" cannot take the request: its queue is full, or none of its workers runs. Try again in a moment.'


@dataclass(frozen=True)
class Change:
    """Constants of a class that are others in its copy.

    Attributes:
        name: of the class's file.
        sha256: of that file.
        constants: each as the file holds it, and what takes its place.
    """

    name: str
    sha256: str
    constants: tuple[tuple[bytes, bytes], ...]


def _text(value: str) -> bytes:
    """A text in a class's pool of constants."""
    return struct.pack(">BH", 1, len(value)) + value.encode()


def _number(value: float) -> bytes:
    """A float64 there."""
    return struct.pack(">Bd", 6, value)


CHANGES = (
    Change(
        "org/pytorch/serve/wlm/Model.class",
        "7c5523f1fe77fe79aa32665469e17725e70518692abcf4987989ef72f10d4cff",
        ((_text("MILLISECONDS"), _text("MICROSECONDS")),),
    ),
    Change(
        "org/pytorch/serve/job/RestJob.class",
        "053de98458cb7590a6a22afe93cd1141eab66036ede5d40418ad2e071eafe834",
        (
            (_number(1e3), _number(1e9)),  # what nanoseconds are divided by
            (_text("ts_queue_latency_microseconds"), _text("ts_queue_latency_seconds")),
            (_text("ts_inference_latency_microseconds"), _text("ts_inference_latency_seconds")),
        ),
    ),
    Change(
        "org/pytorch/serve/util/ApiUtils.class",
        "c98900b13f1e13722cbdb97d76d83db7671476a5e1e69ad57270b519b6bd86d0",
        ((_text(REFUSAL), _text(CLEAR_REFUSAL)),),
    ),
)


def changed_classes(torchserve_home: Path) -> dict[str, bytes]:
    """The copies, by their places on the class path.

    Args:
        torchserve_home: folder that holds the package `ts`.

    Raises:
        ServerError: if TorchServe has another class there than the version that this was made for.
    """
    return dict(_changed(torchserve_home / JAR))


def _changed(jar: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(jar) as file:
        for change in CHANGES:
            code = file.read(change.name)
            if hashlib.sha256(code).hexdigest() != change.sha256:
                raise ServerError(
                    f"{jar} must be TorchServe {VERSION}'s, got another {change.name}: install torchserve=={VERSION}"
                )
            for constant, other in change.constants:
                code = code.replace(constant, other)
            yield change.name, code
