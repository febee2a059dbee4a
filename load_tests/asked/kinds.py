"""Every kind of request that the service takes, and what must be answered to it.

    asks = make_asks(server.url, "mnist-mda", {"png": 8, "photo_12mp": 1, "corrupt": 1})

The server must be idle then: each request is asked once, alone. That answer must be what its kind asks for, say 400
for a corrupt image, and under load it must be the same again (see `same_answer.py`). The asks come shuffled, as often
as their weights say: whoever sends them in their order, over and over, sends the mix.
"""

import base64
import json
import os
import random
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import cycle
from typing import Any

import httpx

from load_tests.asked.asks import Ask
from load_tests.asked.pictures import camera_photo, corrupt, oversized, sketch
from load_tests.asked.same_answer import TOLERANCE, code_of, differs
from serving.keys import client_key

PICTURES = 8  # different ones of a format
IMAGES_IN_JSON = 8
BOUNDARY = "a-boundary-that-no-image-holds"
TIMEOUT_S = 60


class Kind(StrEnum):
    """A kind of request: its name in a mix, and in words."""

    png = "PNG"
    jpeg = "JPEG"
    webp = "WebP"
    photo_2mp = "photo of 2 megapixels"
    photo_12mp = "photo of 12 megapixels"
    multipart = "multipart form"
    json_8 = "JSON with 8 images"
    open_inference = "Open Inference Protocol"
    corrupt = "corrupt image"
    oversized = "oversized image"


EVERY_KIND: Mapping[str, int] = {kind.name: 1 for kind in Kind}


class WrongAlone(ValueError):
    """A server that does not answer, or wrongly, before there is any load."""


@dataclass(frozen=True)
class Question:
    """A request of a kind, and what the answer must be whatever the model says.

    Attributes:
        kind: of request.
        path: of the URL.
        body: as it is sent.
        headers: of it.
        status: of the answer.
        code: of the error; None for an answer without one.
        corrupt_at: which image of several is broken; None for none.
    """

    kind: Kind
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    code: str | None = None
    corrupt_at: int | None = None


@dataclass(frozen=True)
class Known:
    """A question and the body that answered it alone."""

    question: Question
    right: Mapping[str, Any]

    def check(self, status: int, body: bytes, tolerance: float = TOLERANCE) -> str | None:
        """What is wrong with an answer under load, if anything."""
        if status != self.question.status:
            return f"status must be {self.question.status}, got {status}: {_shown(body)}"
        try:
            return differs(self.right, json.loads(body), tolerance)
        except ValueError:
            return f"answer must be JSON, got {_shown(body)}"


def make_asks(
    url: str, model: str, mix: Mapping[str, int] = EVERY_KIND, seed: int = 0, tolerance: float = TOLERANCE
) -> Sequence[Ask]:
    """Ask an idle server once for everything in a mix, and make of that what a load sends.

    Args:
        url: of the server.
        model: which it serves.
        mix: weights, whole numbers, by the names of `Kind`.
        seed: of the order.
        tolerance: how far a probability may be from the one alone.

    Returns:
        Asks in the proportions of the mix, shuffled.

    Raises:
        WrongAlone: if the server does not answer, or wrongly.
        ValueError: if the mix has a kind that there is not, or none at all.
    """
    known = learn(url, questions(model, [Kind[name] for name in checked(mix)]))
    return [as_ask(one, tolerance) for one in shuffled(known, mix, seed)]


def checked(mix: Mapping[str, int]) -> list[str]:
    """The kinds in a mix that have a weight.

    Raises:
        ValueError: if one is unknown, or there is none.
    """
    unknown = [name for name in mix if name not in Kind.__members__]
    if unknown:
        raise ValueError(f"a kind of request must be one of {', '.join(Kind.__members__)}, got {unknown[0]!r}")
    asked = [name for name, weight in mix.items() if weight > 0]
    if not asked:
        raise ValueError(f"a mix must have a kind with a weight above 0, got {dict(mix)}")
    return asked


def as_ask(known: Known, tolerance: float = TOLERANCE) -> Ask:
    """What a load sends."""
    question = known.question
    check = partial(known.check, tolerance=tolerance)
    return Ask(question.kind.value, question.path, question.body, question.headers, check)


def shuffled(known: Sequence[Known], mix: Mapping[str, int], seed: int = 0) -> list[Known]:
    """Questions as often as their kinds weigh, in a seeded order in which each of them comes."""
    of_kind = {name: cycle([one for one in known if one.question.kind.name == name]) for name in checked(mix)}
    deck = [next(of_kind[name]) for _ in range(PICTURES) for name in of_kind for _ in range(mix[name])]
    random.Random(seed).shuffle(deck)
    return deck


def learn(url: str, asked: Sequence[Question]) -> list[Known]:
    """Ask each question once, one after the other, of an idle server, with the key in the environment if there is one.

    Raises:
        WrongAlone: if one is not answered, or not as its kind must be.
    """
    with httpx.Client(base_url=url, headers=key_headers(), timeout=TIMEOUT_S, trust_env=False) as client:
        return [Known(question, _alone(client, question)) for question in asked]


def key_headers() -> dict[str, str]:
    """What names the key in DISCRIMINANT_INFERENCE_KEY, for a server that asks for one."""
    key = client_key(None, os.environ)
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _alone(client: httpx.Client, question: Question) -> Mapping[str, Any]:
    what = f"{question.kind} at {question.path}, asked alone,"
    try:
        response = client.post(question.path, content=question.body, headers=question.headers)
        body: Mapping[str, Any] = response.json()
    except httpx.HTTPError as exc:
        raise WrongAlone(f"{what} must be answered, got {type(exc).__name__}: {exc}") from exc
    except ValueError as exc:
        raise WrongAlone(f"{what} must be answered in JSON, got {_shown(response.content)}") from exc
    if (response.status_code, code_of(body)) != (question.status, question.code):
        must = f"{question.status} {question.code or 'without an error'}"
        raise WrongAlone(f"{what} must be {must}, got {response.status_code} {_shown(response.content)}")
    broken = [place for place, one in enumerate(body.get("predictions", [])) if "error" in one]
    if broken != [place for place in [question.corrupt_at] if place is not None]:
        raise WrongAlone(f"{what} must have an error only at {question.corrupt_at}, got errors at {broken}")
    return body


def questions(model: str, kinds: Sequence[Kind] = tuple(Kind)) -> list[Question]:
    """Requests of some kinds, several of each, with images of their own."""
    return [question for kind in kinds for question in _MAKERS[kind](kind, model)]


def _bare(kind: Kind, model: str) -> Iterator[Question]:
    for seed in range(PICTURES):
        yield Question(kind, _path(model), sketch(kind.value, seed))


def _photos(kind: Kind, model: str) -> Iterator[Question]:
    megapixels, count = (2, 4) if kind is Kind.photo_2mp else (12, 2)
    for seed in range(count):
        yield Question(kind, _path(model), camera_photo(megapixels, seed))


def _multipart(kind: Kind, model: str) -> Iterator[Question]:
    """A form with an image and a parameter."""
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    part = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    for image in _pictures(20, PICTURES):
        parameters = part + '"parameters"\r\n\r\n{"top_k": 1}\r\n'
        data = part + '"data"; filename="image"\r\nContent-Type: application/octet-stream\r\n\r\n'
        body = parameters.encode() + data.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
        yield Question(kind, _path(model), body, headers)


def _json(kind: Kind, model: str) -> Iterator[Question]:
    """Eight images, of which every other request has a corrupt one, each time at another place."""
    for number in range(4):
        images = _pictures(40 + IMAGES_IN_JSON * number, IMAGES_IN_JSON)
        at = 3 * number % IMAGES_IN_JSON if number % 2 else None
        if at is not None:
            images[at] = corrupt("PNG", at)
        body = {"instances": [{"b64": base64.b64encode(image).decode()} for image in images]}
        headers = {"Content-Type": "application/json"}
        yield Question(kind, _path(model), json.dumps(body).encode(), headers, corrupt_at=at)


def _tensors(kind: Kind, model: str) -> Iterator[Question]:
    """Two images in a tensor, in every other request as base64 in JSON, in the others behind the JSON."""
    for number in range(4):
        images = _pictures(80 + 2 * number, 2)
        tensor: dict[str, Any] = {"name": "images", "shape": [len(images)], "datatype": "BYTES"}
        binary, headers = b"", {"Content-Type": "application/json"}
        if number % 2:
            binary = b"".join(struct.pack("<I", len(image)) + image for image in images)
            tensor["parameters"] = {"binary_data_size": len(binary)}
        else:
            tensor["data"] = [base64.b64encode(image).decode() for image in images]
        text = json.dumps({"inputs": [tensor]}).encode()
        if binary:
            headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
        yield Question(kind, f"/v2/models/{model}/infer", text + binary, headers)


def _corrupt(kind: Kind, model: str) -> Iterator[Question]:
    for seed, format_ in enumerate(("PNG", "JPEG", "WebP")):
        yield Question(kind, _path(model), corrupt(format_, seed), status=400, code="undecodable_image")


def _oversized(kind: Kind, model: str) -> Iterator[Question]:
    yield Question(kind, _path(model), oversized(), status=413, code="image_too_large")


_MAKERS: Mapping[Kind, Callable[[Kind, str], Iterator[Question]]] = {
    Kind.png: _bare,
    Kind.jpeg: _bare,
    Kind.webp: _bare,
    Kind.photo_2mp: _photos,
    Kind.photo_12mp: _photos,
    Kind.multipart: _multipart,
    Kind.json_8: _json,
    Kind.open_inference: _tensors,
    Kind.corrupt: _corrupt,
    Kind.oversized: _oversized,
}


def _pictures(seed: int, count: int) -> list[bytes]:
    """Sketches in all formats in turn."""
    return [sketch(("PNG", "JPEG", "WebP")[number % 3], number) for number in range(seed, seed + count)]


def _path(model: str) -> str:
    return f"/predictions/{model}"


def _shown(body: bytes) -> str:
    return repr(body[:200])[1:]
