"""Copies of TorchServe's classes in which a few constants or instructions are others; why is told in `patches`."""

import hashlib
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ServerError
from serving.keys import Keys
from serving.torchserve.patches.pool import Pool, double, text, whole

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


CHANGES = (
    Change(
        "org/pytorch/serve/wlm/Model.class",
        "7c5523f1fe77fe79aa32665469e17725e70518692abcf4987989ef72f10d4cff",
        ((text("MILLISECONDS"), text("MICROSECONDS")),),
    ),
    Change(
        "org/pytorch/serve/job/RestJob.class",
        "053de98458cb7590a6a22afe93cd1141eab66036ede5d40418ad2e071eafe834",
        (
            (double(1e3), double(1e9)),  # what nanoseconds are divided by
            (text("ts_queue_latency_microseconds"), text("ts_queue_latency_seconds")),
            (text("ts_inference_latency_microseconds"), text("ts_inference_latency_seconds")),
        ),
    ),
    Change(
        "org/pytorch/serve/util/ApiUtils.class",
        "c98900b13f1e13722cbdb97d76d83db7671476a5e1e69ad57270b519b6bd86d0",
        ((text(REFUSAL), text(CLEAR_REFUSAL)),),
    ),
    Change(
        "org/pytorch/serve/http/api/rest/InferenceRequestHandler.class",
        "915ac25d1f8a2360181528aa8eabd3c769ebd807d54798f0bce9bc934213eb93",
        ((text("APPLICATION_X_WWW_FORM_URLENCODED"), text("TRAILERS")),),  # fields of Netty's HttpHeaderValues
    ),
    Change(
        "io/netty/buffer/AbstractByteBufAllocator.class",
        "4852a094a9492360701e9dabaa14ad8ba618886237f85107f174976c537937ff",
        ((whole(4 * 2**20), whole(2**30)),),
    ),
)


KEYS_CLASS = "org/pytorch/serve/util/TokenAuthorization.class"
KEYS_SHA256 = "e6b5b9cedfb53c962d1c1e85b18e4143605860883395927df36565b76da59af8"
DRAW_KEY = bytes.fromhex("b8001d")  # invokestatic generateKey
KEEP_KEYS = bytes.fromhex("b30087"), bytes.fromhex("b3008e")  # putstatic managementKey, putstatic inferenceKey

CONNECTION_CLASS = "org/pytorch/serve/ServerInitializer.class"
CONNECTION_SHA256 = "096cdc16ec94359c5bafd0fddf4443e3d9a8c7656863d0b57bf1586fd2f8f700"
STILL_S = 75  # how long a connection may be without a byte from the client
TIMEOUT_HANDLER = "io/netty/handler/timeout/ReadTimeoutHandler"
INIT_OF_INT = 64  # the constant `<init>(I)V`
PIPELINE = bytes.fromhex("2b b9 0011 01 00")  # aload_1, invokeinterface pipeline
ADD_LAST = bytes.fromhex("b9 0030 03 00 57")  # invokeinterface addLast, pop
FIRST_OF_CONNECTION = PIPELINE + bytes.fromhex("4d bb 0017 59")  # the first instructions of initChannel, up to a `new`
CODE_LENGTH, LENGTH = 4, 12  # bytes before a method's code to its length, and to that of it with all about it
VARIABLES = "LocalVariableTable"  # what a debugger wants, by places in the code
FIRST_FRAME = bytes.fromhex("ff 0043")  # the first jump's target: `full_frame` at 67


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
        yield CONNECTION_CLASS, _with_timeout(_read(file, CONNECTION_CLASS, CONNECTION_SHA256))
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
    """The class with two more strings: where it has drawn its first keys, it loads these.

    Both instructions have three bytes and leave a string on the stack, so no offset and no stack map changes.
    """
    pool = Pool(code)
    loads = [_load(pool.string(key)) for key in (keys.management, keys.inference)]
    drawn = b"".join(DRAW_KEY + keep for keep in KEEP_KEYS)
    given = b"".join(load + keep for load, keep in zip(loads, KEEP_KEYS, strict=True))
    return pool.extended().replace(drawn, given)


def _with_timeout(code: bytes) -> bytes:
    """The class with `channel.pipeline().addLast("timeout", new ReadTimeoutHandler(STILL_S))` before all else.

    Jumps are relative, so of all that counts bytes only two lengths and the place of the first jump's target change,
    and the names of variables go: under another name, a table is none that Java reads.
    """
    pool = Pool(code)
    name, handler = pool.string("timeout"), pool.owner(TIMEOUT_HANDLER)
    made = struct.pack(">BHBBHBH", 0xBB, handler, 0x59, 0x11, STILL_S, 0xB7, pool.method(handler, INIT_OF_INT))
    added = PIPELINE + _load(name) + made + ADD_LAST  # `made` is: new, dup, sipush, invokespecial <init>
    code = pool.extended()
    at = code.index(FIRST_OF_CONNECTION)
    head, rest = bytearray(code[:at]), code[at:]
    for before in (LENGTH, CODE_LENGTH):
        place = slice(at - before, at - before + 4)
        head[place] = (int.from_bytes(head[place]) + len(added)).to_bytes(4)
    frame = FIRST_FRAME[:1] + (int.from_bytes(FIRST_FRAME[1:]) + len(added)).to_bytes(2)
    return bytes(head).replace(text(VARIABLES), text("None")) + added + rest.replace(FIRST_FRAME, frame, 1)


def _load(string: int) -> bytes:
    return struct.pack(">BH", 0x13, string)  # ldc_w
