"""Draining: how a server is stopped without losing a request.

TorchServe cuts every connection as soon as it is told to stop, so nothing may be in flight by then. The launcher

1. marks the server as about to stop, and `status` calls it unready;
2. lets one request per version stand in line: when a worker has answered it, all that came before have left the queue;
3. closes the workers' door: from then on each batch is refused (503 `draining`), which also closes its connections;
4. waits for the batches that were in the workers' hands, and for their answers to reach the clients.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import httpx

from serving.errors import Draining, ImageError
from serving.torchserve.door import close_door, left_door
from serving.torchserve.state import Server

_POLL_S = 0.01
ANSWER_S = 3.0  # is longer than any request waits, see `budget.py`
ANSWERS_S = 0.3  # for the answers that have left a worker to reach their clients
TICKET = "drain"
OF_A_WORKER = (ImageError.code, Draining.code)  # what it says of a request that holds no image


def drain(server: Server, key: str | None, deadline: float) -> list[str]:
    """Steps 2 to 4 above, until `deadline` by `time.monotonic`.

    Args:
        server: what it is.
        key: its inference key, if it asks for one.
        deadline: of all of it.

    Returns:
        Why not everything was answered; nothing if it was.
    """
    tmp = Path(server.tmp)
    lost = stand_in_line(server, [f"{name}/{version}" for name, version in server.versions], key, deadline)
    close_door(tmp)
    if not left_door(tmp, deadline):
        lost.append("a worker has not finished its batch")
    time.sleep(max(0.0, min(ANSWERS_S, deadline - time.monotonic())))
    return lost


def stand_in_line(server: Server, versions: Sequence[str], key: str | None, deadline: float) -> list[str]:
    """Send one request to each `name/version`, behind all that wait there.

    Returns:
        What went wrong, of each that no worker has answered by then; what came before the others has left the queue.
    """
    headers = {"X-Request-Id": TICKET} | ({"Authorization": f"Bearer {key}"} if key else {})
    pool = ThreadPoolExecutor(max_workers=max(1, len(versions)))
    with httpx.Client(base_url=server.url, headers=headers, verify=server.trusted, trust_env=False) as client:
        try:
            tickets = {version: pool.submit(_refusal, client, version, deadline) for version in versions}
            done, _ = wait(tickets.values(), timeout=max(0.0, deadline - time.monotonic()))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        said = {version: one.result() if one in done else "no answer in time" for version, one in tickets.items()}
    return [f"{version} gave {refusal}" for version, refusal in said.items() if refusal]


def _refusal(client: httpx.Client, version: str, deadline: float) -> str | None:
    """What one request gets instead of a worker's answer.

    A full queue and a worker that dies are asked again, and so is TorchServe if it keeps silent for longer than a
    request may wait: one that meets the death of a worker may be lost.
    """
    refusal = "no answer in time"
    while (left := deadline - time.monotonic()) > 0:
        try:
            response = client.post(f"/predictions/{version}", content=b"", timeout=min(left, ANSWER_S))
        except httpx.TimeoutException:
            continue
        except httpx.HTTPError as exc:
            return str(exc)
        if _is_of_a_worker(response):
            return None
        refusal = f"{response.status_code} {' '.join(response.text.split())}"
        if not response.is_server_error:
            return refusal
        time.sleep(_POLL_S)
    return refusal


def _is_of_a_worker(response: httpx.Response) -> bool:
    try:
        return response.json()["error"]["code"] in OF_A_WORKER
    except (ValueError, LookupError, TypeError):
        return False
