"""What is promised of the image, each as a function that returns a line for people or raises `Failed`."""

import json
import time
from pathlib import Path
from typing import Any

import httpx

from serving.deploy.image_check.clients import Client
from serving.deploy.image_check.engine import Container
from serving.deploy.image_check.shell import Failed

READY_S = 120.0
POLL_S = 0.1
STOP_S = 10.0  # then Docker kills
CLIENTS = 8
BUSY_S = 2.0
MOST_MEGABYTES = {"slim": 900}
ADDRESS = "/predictions/mnist-mda"
WRITABLE = {"/tmp", "/app/.serving"}
REFUSED = (400, 401, 403)  # 400 is TorchServe's
HELD = """
import re
print(*re.findall(r'^(?:Uid|CapEff|CapBnd|NoNewPrivs):\\s+(\\S+)', open('/proc/1/status').read(), re.MULTILINE))
for line in open('/proc/1/mounts'):
    _, place, _, options, *_ = line.split()
    if 'rw' in options.split(',') and not place.startswith(('/proc', '/dev', '/sys')):
        print(place)
"""
TORCH_IN_MAPS = """
import glob
maps = {file: open(file).read() for file in glob.glob('/proc/[0-9]*/maps')}
print(sum('onnxruntime' in text for text in maps.values()), sum('/torch/' in text for text in maps.values()))
"""


def is_small(target: str, size_bytes: int) -> str:
    """The image's size is what its target may have."""
    megabytes = size_bytes / 1e6
    if megabytes > MOST_MEGABYTES.get(target, float("inf")):
        raise Failed(f"the image must have at most {MOST_MEGABYTES[target]} MB, got {megabytes:.0f}")
    return f"{megabytes:.0f} MB"


def becomes_healthy(container: Container, image: dict[str, Any], began: float) -> str:
    """The image's own health check says so in time."""
    kind, *check = image["Healthcheck"]["Test"]
    if kind != "CMD":
        raise Failed(f"HEALTHCHECK must be a list of words, got {kind}")
    while container.execute(*check).returncode:
        if (code := container.wait(0)) is not None:
            raise Failed(f"the container must stay up, got exit code {code}")
        if time.monotonic() - began > READY_S:
            raise Failed(f"the health check must succeed within {READY_S:g} s, got none")
        time.sleep(POLL_S)
    return f"{time.monotonic() - began:.1f} s after its start"


def is_locked_down(container: Container) -> str:
    """It runs as its own user, with no capability and no way to one, and only its state and /tmp can be written to."""
    user, effective, bounding, no_more, *writable = container.execute("python", "-c", HELD).stdout.split()
    if user == "0" or int(effective, 16) or int(bounding, 16) or no_more != "1":
        held = f"user {user}, {effective}, {bounding}, no_new_privs {no_more}"
        raise Failed(f"the main process must have a user of its own and no capability, got {held}")
    if not set(writable) <= WRITABLE:
        raise Failed(f"only {', '.join(sorted(WRITABLE))} must be open for writing, got {', '.join(writable)}")
    return f"user {user}, no capability, no_new_privs, read-only but for {', '.join(writable)}"


def asks_for_a_key(container: Container, image: Path, label: str) -> tuple[str, str]:
    """With its key it answers right, without or with another it refuses; a line, and the key."""
    key = json.loads(container.execute("cat", ".serving/keys.json").stdout)["inference"]
    statuses = []
    with container.network():
        for given in (key, None, "x" * 20):
            headers = {"Authorization": f"Bearer {given}"} if given else {}
            response = httpx.post(container.url + ADDRESS, content=image.read_bytes(), headers=headers, trust_env=False)
            statuses.append(response.status_code)
            if given == key and response.json().get("label") != label:
                raise Failed(f"{image.name} must be answered with {label}, got {response.text[:200]}")
    if statuses[0] != 200 or not all(status in REFUSED for status in statuses[1:]):
        raise Failed(f"it must answer with its key alone, got {statuses} with it, without, and with another")
    return f"an image of a {label} is a {label}; {statuses[1]} without a key, {statuses[2]} with a wrong one", key


def has_no_torch(container: Container) -> str:
    """No process has torch in its memory."""
    runs_onnx, has_torch = map(int, container.execute("python", "-c", TORCH_IN_MAPS).stdout.split())
    if has_torch or not runs_onnx:
        raise Failed(f"workers must hold ONNX Runtime and not torch, got {runs_onnx} that do, {has_torch} with torch")
    return f"processes with ONNX Runtime in memory: {runs_onnx}, with torch: 0"


def stops_without_a_loss(container: Container, image: bytes, key: str) -> str:
    """Told to end while clients send, it answers what it has accepted, and ends in time with exit code 0."""
    with container.network():
        clients = [Client(container.url + ADDRESS, image, key) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(BUSY_S)
        stopped = time.monotonic()
        container.terminate()
        code = container.wait(STOP_S)
        took = time.monotonic() - stopped
    for client in clients:
        client.finished.set()
        client.join()
    before = [end for client in clients for began, end in client.ends if began < stopped]
    after = [end for client in clients for began, end in client.ends if began >= stopped]
    if code != 0:
        raise Failed(f"a stop must end within {STOP_S:g} s with exit code 0, got {'none' if code is None else code}")
    if set(before) != {200} or not set(after) <= {200, 503, "refused"}:
        raise Failed(f"what was accepted must be answered, got {set(before)} before the stop, {set(after)} after it")
    refused = sum(end != 200 for end in after)
    return f"{len(before) + len(after) - refused} requests answered, {refused} refused, ended in {took:.1f} s"
