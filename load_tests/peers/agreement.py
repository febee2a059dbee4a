"""Whether a peer answers the same as ours: a peer that does not is not measured.

questions = make_questions(Bundle.load(folder), "float32")
require_agreement(questions, server, peer)
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
from numpy.typing import NDArray

from load_tests.asked.sent_images import encoded
from load_tests.peers.peer import Peer
from load_tests.peers.running import PeerError, Server
from serving.bundle import Bundle, Precision
from serving.predictor import Predictor

TOLERANCE = 1e-4  # of every number, absolute or of its value
IMAGES = 8
AT_ONCE = 8  # so that they are answered in batches


@dataclass(frozen=True)
class Question:
    """An image and what ours answers."""

    name: str
    image: bytes
    answer: dict[str, Any]


def make_questions(bundle: Bundle, precision: Precision) -> list[Question]:
    """Images of the bundle as PNG, one as JPEG, one of another size, and the predictor's answers, one at a time."""
    golden = bundle.read_golden(precision)[0][:IMAGES]
    images = {f"PNG {n}": _encoded(pixels, "PNG") for n, pixels in enumerate(golden)}
    images["JPEG"] = _encoded(golden[0], "JPEG")
    images["larger PNG"] = _encoded(golden[-1].repeat(3, axis=1).repeat(2, axis=2), "PNG")
    predictor = Predictor(bundle, threads=1, precision=precision)
    answers = [predictor.predict([image])[0] for image in images.values()]
    return [
        Question(name, image, answer)
        for (name, image), answer in zip(images.items(), answers, strict=True)
        if isinstance(answer, dict)
    ]


def require_agreement(questions: Sequence[Question], server: Server, peer: Peer) -> None:
    """Ask all questions at once.

    Raises:
        PeerError: if one is answered otherwise than by ours.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        problems = list(pool.map(lambda question: _problem(question, server, peer), questions))
    for question, problem in zip(questions, problems, strict=True):
        if problem is not None:
            raise PeerError(f"the answer must be the same as ours, got for {question.name}: {problem}")


def difference(expected: Any, got: Any, where: str = "answer") -> str | None:
    """What differs between two answers, numbers by more than the tolerance; None if nothing does."""
    if isinstance(expected, dict) and isinstance(got, dict):
        if expected.keys() != got.keys():
            return f"{where} with keys {sorted(got)} instead of {sorted(expected)}"
        parts = [(f"{where}.{key}", expected[key], got[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        parts = [(f"{where}[{n}]", *pair) for n, pair in enumerate(zip(expected, got, strict=True))]
    elif isinstance(expected, float) and isinstance(got, float | int):
        near = math.isclose(expected, got, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        return None if near else f"{where} {got:g} instead of {expected:g}"
    else:
        return None if expected == got else f"{where} {got!r} instead of {expected!r}"
    return next((found for part in parts if (found := difference(part[1], part[2], part[0]))), None)


def _problem(question: Question, server: Server, peer: Peer) -> str | None:
    try:
        status, body = server.ask(peer, question.image)
    except OSError as error:
        return f"no answer ({error})"
    if status != HTTPStatus.OK:
        return f"status {status}: {body[:200]!r}"
    try:
        return difference(question.answer, peer.unwrap(body))
    except (ValueError, LookupError, TypeError) as error:
        return f"{body[:200]!r}, which cannot be read ({type(error).__name__}: {error})"


def _encoded(pixels: NDArray[np.uint8], kind: str) -> bytes:
    """(channels, height, width) → an image file."""
    rows = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    return encoded(np.ascontiguousarray(rows), kind)
