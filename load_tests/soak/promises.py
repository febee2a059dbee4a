"""What a server has promised, held against what came of it under load and faults: a line each.

    lines = kept(windows, failures, faults, histories, batch_size=32, most_refused=0.01)

What may fail: the batch in the hands of a worker that is killed (500 or 507); what is sent while the server is stopped
(503, or no connection); while a worker is replaced, what finds the queue full (503); and few besides, if the server has
too much to do for them (503).
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from load_tests.soak.faults import Happened
from load_tests.soak.outcomes import FAILURES, Outcome
from load_tests.soak.steady_load import Failure, Window
from load_tests.soak.trends import DESCRIPTORS, LATENCY, LEAST_POINTS, LONG_S, MEMORY, Line, flat, floors, steady
from load_tests.soak.watch import ROLES, History

WARM_UP_SHARE, WARM_UP_S = 0.25, 300.0  # of the time that a process was seen, at most so long
CLOCK_S = 0.1  # within which two of our clock readings of one moment may lie


def kept(
    windows: Sequence[Window],
    failures: Sequence[Failure],
    faults: Sequence[Happened],
    histories: Sequence[History],
    batch_size: int,
    most_refused: float,
) -> list[Line]:
    """Every promise, and what came of it.

    Args:
        windows: of the load.
        failures: of its requests.
        faults: what has happened meanwhile.
        histories: of the server's processes.
        batch_size: requests that a worker has in hand at most.
        most_refused: share of the requests that a server which is up may refuse, for it has too much to do.
    """
    return [
        *of_requests(windows, failures, faults, batch_size, most_refused),
        *(line for one in faults for line in one.lines),
        *of_processes(histories),
        of_latency(windows, faults),
    ]


def of_requests(
    windows: Sequence[Window],
    failures: Sequence[Failure],
    faults: Sequence[Happened],
    batch_size: int,
    most_refused: float,
) -> list[Line]:
    """Whether every request got what it was promised."""
    requests = sum(window.requests for window in windows)
    most_lost = batch_size * sum(fault.killed for fault in faults)
    in_hand = [one for one in failures if one.outcome == "lost" and _was_in_hand(one, faults)]
    excused = {id(one) for one in failures if one in in_hand or _was_turned_away(one, faults)}
    broken: dict[Outcome, list[Failure]] = {outcome: [] for outcome in FAILURES} | _by_outcome(
        one for one in failures if id(one) not in excused
    )
    refused = len(broken["refused"])
    return [
        Line("requests must be sent", f"{requests:,}", requests > 0),
        Line("no answer may be wrong", _shown(broken["wrong"]), not broken["wrong"]),
        Line("no request may wait without an end", _shown(broken["hung"]), not broken["hung"]),
        Line(
            f"of each worker that is killed at most the batch in its hands may be lost, {most_lost} requests",
            str(len(in_hand)),
            len(in_hand) <= most_lost,
        ),
        Line("no other request may be lost", _shown(broken["lost"]), not broken["lost"]),
        Line("no connection may be cut but by a stop", _shown(broken["cut"]), not broken["cut"]),
        Line(
            f"a server that is up may refuse at most {most_refused:.1%} of the requests".replace("%", " %"),
            _shown(broken["refused"]),
            refused <= most_refused * requests,
        ),
    ]


def _by_outcome(failures: Iterable[Failure]) -> dict[Outcome, list[Failure]]:
    found: dict[Outcome, list[Failure]] = {}
    for one in failures:
        found.setdefault(one.outcome, []).append(one)
    return found


def of_processes(histories: Iterable[History]) -> list[Line]:
    """Whether memory and descriptors of the processes that are there at the end have been flat."""
    lines = []
    histories = [one for one in histories if one.times]
    end = max((one.times[-1] for one in histories), default=0.0)
    last = [one for one in histories if end - one.times[-1] <= _pause(one)]
    for role in ROLES:
        of_role = [one for one in last if one.role == role]
        lines.append(Line(f"{role} must be there to the end", f"{len(of_role)} running", bool(of_role)))
        for number, one in enumerate(of_role, start=1):
            name = role if len(of_role) == 1 else f"{role} {number}"
            start = one.times[0] + min(WARM_UP_S, WARM_UP_SHARE * (one.times[-1] - one.times[0]))
            warm = next(n for n, at in enumerate(one.times) if at >= start)
            times = one.times[warm:]
            lines.append(flat(f"memory of {name}", times, one.megabytes[warm:], MEMORY))
            lines.append(flat(f"descriptors of {name}", *floors(times, one.descriptors[warm:]), DESCRIPTORS))
    return lines


def of_latency(windows: Sequence[Window], faults: Sequence[Happened]) -> Line:
    """Whether the p99 of windows without a fault has had no trend."""
    calm = [one for one in windows if one.p99_ms is not None and is_calm(one, faults)]
    if len(calm) < LEAST_POINTS:
        seconds = sum(one.seconds for one in windows)
        got = f"{len(calm)} windows without a fault, too few to tell"
        return Line("p99 must have no trend", got, seconds < LONG_S)
    return steady("p99", [one.at_s for one in calm], [one.p99_ms or 0.0 for one in calm], LATENCY)


def is_calm(window: Window, faults: Iterable[Happened]) -> bool:
    """Whether no fault touches a window or ends just before it."""
    return all(
        window.at_s + window.seconds < fault.began_s or fault.ended_s + window.seconds < window.at_s for fault in faults
    )


def _was_in_hand(failure: Failure, faults: Iterable[Happened]) -> bool:
    """Whether a request may have been in the hands of a worker when that was killed."""
    return any(
        fault.killed > 0 and failure.sent_s <= fault.ended_s and failure.ended_s >= fault.began_s for fault in faults
    )


def _was_turned_away(failure: Failure, faults: Iterable[Happened]) -> bool:
    """Whether a request had to be refused: the server was stopped, or a worker was missing."""
    for fault in faults:
        if fault.down_s is not None:
            stopped, started = (one + sign * CLOCK_S for one, sign in zip(fault.down_s, (-1, 1), strict=True))
            if failure.outcome in ("refused", "cut") and stopped <= failure.sent_s <= started:
                return True
        elif fault.killed and failure.outcome == "refused" and fault.began_s <= failure.sent_s <= fault.ended_s:
            return True
    return False


def _shown(failures: Sequence[Failure]) -> str:
    """How many, and the commonest of them."""
    if not failures:
        return "0"
    ((kind, problem), count), *_ = Counter((one.kind, one.problem) for one in failures).most_common(1)
    first = next(one for one in failures if (one.kind, one.problem) == (kind, problem))
    return f"{len(failures):,}: {count:,} of {kind}, first at {first.sent_s:.1f} s: {problem}"


def _pause(history: History) -> float:
    """Twice the longest time between two looks: after that much silence a process has ended."""
    return 2 * max((later - at for at, later in zip(history.times, history.times[1:], strict=False)), default=1.0)
