"""What `start` says of a server that is ready."""

import os
from pathlib import Path

from serving.budget import QUEUE
from serving.keys import INFERENCE_VARIABLE
from serving.status_table import print_speedup
from serving.torchserve.launch import OWN_KEY_FILE, STATE
from serving.torchserve.management import inference_key
from serving.torchserve.state import KEY_FILE, Server


def print_started(server: Server, state: Path, place_of_key: str) -> None:
    """Print where it answers, what requests must name, how few may wait, and what int8 brings."""
    print(f"Serving {', '.join(server.models)} at {server.url}", flush=True)
    if inference_key(state) is not None:
        print(f"Requests need a key, Authorization: Bearer KEY; it is {place_of_key}", flush=True)
    if server.queue < QUEUE:
        print(
            f"At most {server.queue} requests of a model may wait, for memory must do for as many of "
            f"{server.max_request_bytes} bytes: a lower --max-request-bytes lets more wait, up to {QUEUE}",
            flush=True,
        )
    for name, speedup in server.speedups.items():
        print_speedup(name, speedup)


def place_of_key(key_file: Path | None, state: Path, stock: bool) -> str:
    """Where a person finds the key for requests."""
    if INFERENCE_VARIABLE in os.environ:
        return f"in {INFERENCE_VARIABLE}"
    return f"`inference` in {key_file or state / (KEY_FILE if stock else OWN_KEY_FILE)}"


def print_next(server: Server, state: Path) -> None:
    """Print what can be done with it."""
    option = "" if state == STATE else f" --state {state}"
    key = "" if inference_key(state) is None else " -H 'Authorization: Bearer KEY'"
    print(f"  try   curl{key} -T IMAGE {server.url}/predictions/{server.models[0]}")
    print(f"  or    python -m serving classify IMAGE --model {server.models[0]}{option}")
    print(f"  stop  python -m serving stop{option}")
