"""What the processes of the open loop hand each other: what is to be sent, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass

Outcome = tuple[int, int | str, bytes]  # which of the plan's requests; status, or why there was none; body


@dataclass(frozen=True)
class Plan:
    """What is to be sent.

    Attributes:
        host: address of the server.
        port: likewise.
        encoded: the different requests, as they go over the wire.
        due_s: when requests are due, in seconds from the start, ascending.
        drawn: which of `encoded` each is.
        connections: at most.
        timeout_s: of a new connection, and of a request from when it was sent until its answer.
    """

    host: str
    port: int
    encoded: Sequence[bytes]
    due_s: Sequence[float]
    drawn: Sequence[int]
    connections: int
    timeout_s: float


@dataclass(frozen=True)
class Sent:
    """What came of a plan, request by request in its order.

    Attributes:
        began: the start, by `time.monotonic`.
        cpu_s: seconds of a core that the process took from the start to the end.
        sent_s: when requests were sent, in seconds from the start; if never, when that was given up.
        done_s: when the whole answer, or what came instead, was there.
        waited: 1 for those that found no free connection when they were due, else 0.
        outcome: index into `outcomes`.
        outcomes: those that differ.
    """

    began: float
    cpu_s: float
    sent_s: Sequence[float]
    done_s: Sequence[float]
    waited: Sequence[int]
    outcome: Sequence[int]
    outcomes: Sequence[Outcome]
