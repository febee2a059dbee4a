"""What is changed of TorchServe; that it still serves is what every test of the server shows."""

import re
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from serving.errors import ServerError
from serving.keys import Keys
from serving.torchserve.patches import classes

KEYS_POOL_END = 5479  # of TokenAuthorization, by javap


def torchserve_home() -> Path:
    package = find_spec("ts")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).resolve().parents[1]


def test_only_constants_differ() -> None:
    changed = classes.changed_classes(torchserve_home())
    with zipfile.ZipFile(torchserve_home() / classes.JAR) as jar:
        original = {name: jar.read(name) for name in changed}

    names = ("wlm/Model", "job/RestJob", "util/ApiUtils", "http/api/rest/InferenceRequestHandler", "ServerInitializer")
    model, job, words, *others = (f"org/pytorch/serve/{name}.class" for name in names)
    buffers = "io/netty/buffer/AbstractByteBufAllocator.class"
    assert set(changed) == {model, job, words, buffers, *others}
    assert changed[buffers] == original[buffers].replace(b"\x03\x00\x40\x00\x00", b"\x03\x40\x00\x00\x00")
    assert changed[buffers] != original[buffers]
    assert changed[words].count(classes.CLEAR_REFUSAL.encode()) == 1
    assert classes.REFUSAL.encode() not in changed[words]
    differing = [n for n, (one, other) in enumerate(zip(original[model], changed[model], strict=True)) if one != other]
    assert len(differing) == 3
    assert re.findall(rb"MI\w+SECONDS", changed[model]) == [b"MICROSECONDS"]
    names = re.findall(rb"\x00.(ts_\w+_latency_\w+)", changed[job])  # not those inside its messages
    assert sorted(names) == [b"ts_inference_latency_seconds", b"ts_queue_latency_seconds"]
    assert len(original[job]) - len(changed[job]) == 2 * len("micro")


def test_keys_are_two_more_constants_that_are_loaded_where_others_were_drawn() -> None:
    keys = Keys("i" * 16, "m" * 128)
    name = classes.KEYS_CLASS
    changed = classes.changed_classes(torchserve_home(), keys)[name]
    with zipfile.ZipFile(torchserve_home() / classes.JAR) as jar:
        original = jar.read(name)

    count, end = int.from_bytes(original[8:10]), KEYS_POOL_END
    pool = changed[end : len(changed) - len(original) + end]
    assert int.from_bytes(changed[8:10]) == count + 4
    assert changed[:8] + original[8:10] + changed[10:end] == original[:end]
    assert re.findall(rb"\x01..([im]+)\x08(..)", pool, re.DOTALL) == [
        (keys.management.encode(), count.to_bytes(2)),
        (keys.inference.encode(), (count + 2).to_bytes(2)),
    ]
    code, old = changed[end + len(pool) :], original[end:]
    at = next(n for n, (one, other) in enumerate(zip(old, code, strict=True)) if one != other)
    loads = [b"\x13" + (count + n).to_bytes(2) for n in (1, 3)]
    assert code[at : at + 12] == loads[0] + old[at + 3 : at + 6] + loads[1] + old[at + 9 : at + 12]
    assert (code[:at], code[at + 12 :]) == (old[:at], old[at + 12 :])


def test_a_connection_gets_one_more_handler_before_its_others() -> None:
    name = classes.CONNECTION_CLASS
    changed = classes.changed_classes(torchserve_home())[name]
    with zipfile.ZipFile(torchserve_home() / classes.JAR) as jar:
        original = jar.read(name)

    first = bytes.fromhex("2bb90011010 04d".replace(" ", ""))  # channel.pipeline(), kept
    at, old = changed.index(first), original.index(first)
    added = changed[at - 25 : at]
    constants = changed.count(b"timeout") - original.count(b"timeout"), changed.count(b"ReadTimeoutHandler")
    assert constants == (2, 1)  # the string, and in the handler's name
    assert (added[:6], added[12:16], added[-6:]) == (first[:6], b"\x59\x11\x00\x4b", bytes.fromhex("b90030030057"))
    length, before = int.from_bytes(changed[at - 29 : at - 25]), int.from_bytes(original[old - 4 : old])
    assert length == before + 25
    assert changed[at : at + before] == original[old : old + before]


def test_another_torchserve_is_refused(tmp_path: Path) -> None:
    jar = tmp_path / classes.JAR
    jar.parent.mkdir(parents=True)
    with zipfile.ZipFile(jar, "w") as file:
        file.writestr(classes.CHANGES[0].name, b"other")

    with pytest.raises(ServerError, match=r"must be TorchServe 0\.12\.0's, got another .*: install torchserve=="):
        classes.changed_classes(tmp_path)
