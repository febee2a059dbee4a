"""Draining: how a server is stopped without losing a request.

TorchServe cuts every connection as soon as it is told to stop, so nothing may be in flight by then. The launcher

1. says in server.json that the server drains, and `status` calls it unready;
2. lets one request per model stand in line: when that is answered, all that came before it have left the queue;
3. closes the workers' door: from then on each batch is refused (503 `draining`), which also closes its connections;
4. waits for the batches that were in the workers' hands, and for their answers to reach the clients.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from serving.torchserve.door import close_door, left_door
from serving.torchserve.state import Server

_POLL_S = 0.01
ANSWERS_S = 0.3  # for the answers that have left a worker to reach their clients
TICKET = "drain"


def drain(state: Path, server: Server, models: Sequence[str], key: str | None, timeout_s: float) -> bool:
    """Steps 2 to 4 above.

    Args:
        state: the server's folder.
        server: what it is.
        models: the paths of the models there, `name` or `name/version`.
        key: its inference key, if it asks for one.
        timeout_s: how long all of it may take.

    Returns:
        Whether everything was answered in time.
    """
    deadline = time.monotonic() + timeout_s
    with ThreadPoolExecutor(max_workers=max(1, len(models))) as pool:
        passed = list(pool.map(lambda model: stand_in_line(server, model, key, deadline), models))
    close_door(state)
    finished = left_door(state, deadline)
    time.sleep(ANSWERS_S)
    return all(passed) and finished


def stand_in_line(server: Server, model: str, key: str | None, deadline: float) -> bool:
    """Send one request to `name` or `name/version` behind all that wait; a full queue is asked again.

    Returns:
        Whether a worker has answered it in time: what came before it has then left the queue.
    """
    url = f"{server.url}/predictions/{model}"
    headers = {"X-Request-Id": TICKET} | ({"Authorization": f"Bearer {key}"} if key else {})
    while (left := deadline - time.monotonic()) > 0:
        try:
            response = httpx.post(
                url, content=b"", headers=headers, timeout=left, verify=server.trusted, trust_env=False
            )
        except httpx.HTTPError:
            return False
        if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            return True
        time.sleep(_POLL_S)
    return False
