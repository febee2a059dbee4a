"""A request and how its answer is judged: what every load is made of.

ask = Ask("PNG", "/predictions/mnist-mda", png, check=same_label)
problem = ask.check(status, answer)  # None if the answer is right
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

Check = Callable[[int, bytes], str | None]  # of status and body: what is wrong with them, if anything


def answered(status: int, body: bytes) -> str | None:
    """Nothing is wrong with a 200, whatever it says."""
    return None if status == HTTPStatus.OK else f"status must be 200, got {status}: {body[:200]!r}"


@dataclass(frozen=True)
class Ask:
    """One POST.

    Attributes:
        kind: what figures are told apart by.
        path: of the URL.
        body: as it is sent.
        headers: besides length and host.
        check: judges the answer.
    """

    kind: str
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    check: Check = answered
