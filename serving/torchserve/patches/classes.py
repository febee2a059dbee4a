"""Copies of TorchServe's classes in which a few constants are others; why is told in `patches`."""

import hashlib
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ServerError
from serving.keys import Keys

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


def _whole(value: int) -> bytes:
    """An int32 there."""
    return struct.pack(">Bi", 3, value)


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
    Change(
        "io/netty/buffer/AbstractByteBufAllocator.class",
        "4852a094a9492360701e9dabaa14ad8ba618886237f85107f174976c537937ff",
        ((_whole(4 * 2**20), _whole(2**30)),),
    ),
)


KEYS_CLASS = "org/pytorch/serve/util/TokenAuthorization.class"
KEYS_SHA256 = "e6b5b9cedfb53c962d1c1e85b18e4143605860883395927df36565b76da59af8"
COUNT = slice(8, 10)  # where a class says how many constants it has, and one more
KEYS_POOL_END = 5479  # of that class
DRAW_KEY = bytes.fromhex("b8001d")  # invokestatic generateKey
KEEP_KEYS = bytes.fromhex("b30087"), bytes.fromhex("b3008e")  # putstatic managementKey, putstatic inferenceKey


def changed_classes(torchserve_home: Path, keys: Keys | None = None) -> dict[str, bytes]:
    """The copies, by their places on the class path.

    Args:
        torchserve_home: folder that holds the package `ts`.
        keys: what takes the place of the keys that TorchServe draws; None leaves them to it.

    Raises:
        ServerError: if TorchServe has another class there than the version that this was made for.
    """
    return dict(_changed(torchserve_home / JAR, keys))


def _changed(jar: Path, keys: Keys | None) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(jar) as file:
        for change in CHANGES:
            code = _read(file, change.name, change.sha256)
            for constant, other in change.constants:
                code = code.replace(constant, other)
            yield change.name, code
        if keys is not None:
            yield KEYS_CLASS, _with_keys(_read(file, KEYS_CLASS, KEYS_SHA256), keys)


def _read(jar: zipfile.ZipFile, name: str, sha256: str) -> bytes:
    code = jar.read(name)
    if hashlib.sha256(code).hexdigest() != sha256:
        raise ServerError(
            f"{jar.filename} must be TorchServe {VERSION}'s, got another {name}: install torchserve=={VERSION}"
        )
    return code


def _with_keys(code: bytes, keys: Keys) -> bytes:
    """The class with two more constants: where it has drawn its first keys, it loads these.

    Both instructions have three bytes and leave a string on the stack, so no offset and no stack map changes.
    """
    count = int.from_bytes(code[COUNT])
    pool, loads = b"", list[bytes]()
    for key in (keys.management, keys.inference):
        text = count + 2 * len(loads)
        pool += _text(key) + struct.pack(">BH", 8, text)  # a text, and a string made of it
        loads.append(struct.pack(">BH", 0x13, text + 1))  # ldc_w
    drawn = b"".join(DRAW_KEY + keep for keep in KEEP_KEYS)
    given = b"".join(load + keep for load, keep in zip(loads, KEEP_KEYS, strict=True))
    head = code[: COUNT.start] + struct.pack(">H", count + 4) + code[COUNT.stop : KEYS_POOL_END]
    return head + pool + code[KEYS_POOL_END:].replace(drawn, given)
