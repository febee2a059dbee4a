"""What becomes of a request, told apart by whether the server has broken a promise.

    ask = told_apart(ask)
    outcome_of(sample.problem)     # right, refused, lost, cut, hung or wrong

- `refused`: 503, with words that say why, or no connection: the client knows at once that it may ask again;
- `lost`: a worker died with the request in its hands, and TorchServe says so (500 or 507);
- `cut`: the connection ended without an answer;
- `hung`: no answer came in time;
- `wrong`: any other answer than the right one.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Literal, get_args

from load_tests.asked.asks import Ask
from load_tests.asked.same_answer import code_of

Outcome = Literal["right", "refused", "lost", "cut", "hung", "wrong"]
FAILURES: tuple[Outcome, ...] = get_args(Outcome)[1:]
REFUSED_CODES = ("overloaded", "draining")
OF_CONNECTIONS: dict[str, Outcome] = {  # words of the open loop for what was no answer; all others are "cut"
    "no connection: timed out": "hung",
    "no connection": "refused",
    "no answer": "hung",
}
SHOWN = 200


def told_apart(ask: Ask) -> Ask:
    """The same request, whose problems begin with their outcome."""

    def judged(status: int, body: bytes, check: Callable[[int, bytes], str | None] = ask.check) -> str | None:
        problem = check(status, body)
        return None if problem is None else f"{_of_answer(status, body)}: {problem[:SHOWN]}"

    return replace(ask, check=judged)


def outcome_of(problem: str | None) -> Outcome:
    """That of a request by the problem that the open loop states, if any."""
    if problem is None:
        return "right"
    if (known := next((one for one in FAILURES if problem.startswith(f"{one}: ")), None)) is not None:
        return known
    return next((outcome for words, outcome in OF_CONNECTIONS.items() if problem.startswith(words)), "cut")


def _of_answer(status: int, body: bytes) -> Outcome:
    """What an answer is that is not the right one."""
    try:
        said: Any = json.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return "wrong"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return (
            "refused"
            if code_of(said) in REFUSED_CODES or said.get("type") == "ServiceUnavailableException"
            else "wrong"
        )
    died = status in (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.INSUFFICIENT_STORAGE)
    return "lost" if died and said.get("message") == "Worker died." else "wrong"
