"""The client's side of the served models: post images, read answers."""

import json
import ssl
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import httpx

from serving.errors import BadParameter, ServerError
from serving.respond import Answer

DEFAULT_URL = "http://127.0.0.1:8080"
TIMEOUT = httpx.Timeout(30.0, connect=3.0)
COVERAGE = 0.9  # that is asked for where the model can tell which labels are possible


def connect(url: str, key: str | None = None, trusted: ssl.SSLContext | bool = True) -> httpx.Client:
    """A client for the server at `url`.

    Args:
        url: of its inference interface.
        key: its inference key, if it asks for one.
        trusted: which certificates to believe; True takes the public authorities.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT, verify=trusted, trust_env=False)


def classify_all(
    client: httpx.Client, model: str, images: Iterable[bytes], top_k: int, coverage: float | None
) -> Iterator[Answer]:
    """Send images one after the other.

    Args:
        client: see `connect`.
        model: its name.
        images: encoded ones.
        top_k: classes in each answer.
        coverage: the share of images whose right label is to be possible; None asks for COVERAGE if the model can tell.

    Returns:
        What `classify` does, for each.
    """
    asked: float | None = COVERAGE if coverage is None else coverage
    for image in images:
        answer = classify(client, model, image, top_k, asked)
        if coverage is None and answer.get("error", {}).get("code") == BadParameter.code:
            asked = None
            answer = classify(client, model, image, top_k)
        yield answer


def classify(client: httpx.Client, model: str, image: bytes, top_k: int, coverage: float | None = None) -> Answer:
    """Send one image; see `ask`."""
    return ask(client, model, image, {"top_k": top_k} | ({} if coverage is None else {"coverage": coverage}))


def ask(client: httpx.Client, model: str, image: bytes, parameters: Mapping[str, Any]) -> Answer:
    """Send one image.

    Args:
        client: see `connect`.
        model: its name, or `NAME/VERSION`.
        image: an encoded one.
        parameters: of the request.

    Returns:
        The answer, or `{"error": {"code": ..., "message": ...}}` for an image that cannot be answered.

    Raises:
        ServerError: if there is no server, it has no such model, or it cannot answer at all.
    """
    form = {"parameters": json.dumps(parameters)}
    try:
        response = client.post(f"/predictions/{model}", files={"data": image}, data=form)
    except httpx.ConnectError as exc:
        raise ServerError(f"no server at {client.base_url}: start one with `python -m serving start`") from exc
    except httpx.TimeoutException as exc:
        raise ServerError(f"{client.base_url} must answer within {TIMEOUT.read:g} s, got no answer") from exc
    except httpx.HTTPError as exc:
        raise ServerError(f"{client.base_url} must answer, got {exc}") from exc
    return _answer(response)


def _answer(response: httpx.Response) -> Answer:
    """Our answer or error; TorchServe's own refusals look different, and that of too large a body is empty."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    if "label" in body or "error" in body:
        return dict(body)
    if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return {"error": {"code": "request_too_large", "message": "request must be smaller, got a refusal to read it"}}
    reason = body.get("message") or response.reason_phrase
    if body.get("type") == "InvalidKeyException":
        reason = "the key is none of the server's, or lacks: name one with --key-file or DISCRIMINANT_INFERENCE_KEY"
    raise ServerError(f"{response.url} must answer with 200, got {response.status_code}: {reason}")
