"""What befalls a server that is under load: each fault is a function that does it and says what was asked and got.

    happened = befall(FAULTS[0], site, began=time.monotonic())

Each works by the commands and signals that a user or the machine would use.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from load_tests.asked.asks import Ask
from load_tests.asked.pictures import corrupt, sketch
from load_tests.open_loop.load import offer
from load_tests.soak.hanging import hanging_clients
from load_tests.soak.site import BAD, DAMAGED, GOOD, Site, wait_until
from load_tests.soak.trends import Line
from serving.torchserve.door import is_draining
from serving.torchserve.patches.classes import STILL_S

GIVE_UP_S = 120.0  # after which a server that is not ready is left alone
STOP_SHARE = 2.0  # a stop may take so many times as long as it may take to be ready
CLOSED_S = 15.0  # within which connections beyond their time are closed
HANGING = 40
BURST_PER_SECOND, BURST_S = 100, 3


@dataclass
class Happened:
    """What a fault did.

    Attributes:
        name: of the fault.
        description: of it.
        began_s: when it began, in seconds from the load's start.
        ended_s: when it was over: the server was as it should be.
        lines: what was asked of the server and what it gave.
        killed: workers that were killed.
        down_s: from when until when requests were refused, because the server was stopped.
        ready_s: how long it took to be ready again.
    """

    name: str
    description: str
    began_s: float
    ended_s: float = 0.0
    lines: list[Line] = field(default_factory=list)
    killed: int = 0
    down_s: tuple[float, float] | None = None
    ready_s: float | None = None


Inject = Callable[[Site, Happened, Callable[[], float]], None]


@dataclass(frozen=True)
class Fault:
    """Something that befalls a server.

    Attributes:
        name: for tables and plots.
        description: in words.
        at: when, as a share of the load's time.
        inject: does it.
    """

    name: str
    description: str
    at: float
    inject: Inject


def befall(fault: Fault, site: Site, began: float) -> Happened:
    """Let a fault happen to a server; what goes wrong with that is a line, too.

    Args:
        fault: which.
        site: the server.
        began: the load's start, by `time.monotonic`.
    """

    def now() -> float:
        return time.monotonic() - began

    happened = Happened(fault.name, fault.description, now())
    try:
        fault.inject(site, happened, now)
    except Exception as error:  # the others shall happen, too
        happened.lines.append(Line(f"{fault.name} must be carried out", repr(error), False))
    happened.ended_s = now()
    return happened


def stop_and_start(site: Site, happened: Happened, now: Callable[[], float]) -> None:
    """Stop the server and start it again, by the commands."""
    tmp = Path(site.server.tmp)
    stop = site.begin("stop")
    wait_until(lambda: is_draining(tmp) or stop.poll() is not None, GIVE_UP_S)
    stopped = now()
    output, errors = stop.communicate(timeout=GIVE_UP_S)
    took, most = now() - happened.began_s, STOP_SHARE * site.bounds.ready_within_s
    said = (output + errors).strip()
    happened.lines += [
        Line("stop must say that all was answered", said, said == f"Stopped the server at {site.url}."),
        Line(f"stop must end within {most:g} s", f"{took:.1f} s", took <= most),
    ]
    starting = now()
    start = site.start()
    happened.ready_s, happened.down_s = now() - starting, (stopped, now())
    happened.lines += [
        Line("start must succeed", f"exit code {start.returncode}{_last(start.stderr)}", start.returncode == 0),
        _ready_line("a start", site, happened.ready_s),
    ]


def kill_worker(site: Site, happened: Happened, now: Callable[[], float]) -> None:
    """Kill a worker as the machine's lack of memory would, and wait until another one has its place."""
    before = site.workers()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    happened.killed = 1
    killed = now()

    def replaced() -> bool:
        workers = site.workers()
        return victim not in workers and len(workers) == len(before) and all(workers.values()) and site.is_ready()

    is_back = wait_until(replaced, GIVE_UP_S)
    happened.ready_s = now() - killed if is_back else GIVE_UP_S
    happened.lines.append(_ready_line("a worker's death", site, happened.ready_s))


def deploy(site: Site, happened: Happened, now: Callable[[], float]) -> None:
    """Deploy a version."""
    result = site.command("deploy", site.path(GOOD))
    happened.lines.append(_version_line(site, "deploy", result.returncode, result.stderr, site.first + GOOD))


def roll_back(site: Site, happened: Happened, now: Callable[[], float]) -> None:
    """Go back to the version before."""
    result = site.command("rollback", site.name)
    happened.lines.append(_version_line(site, "rollback", result.returncode, result.stderr, site.first))


def refuse_bad_versions(site: Site, happened: Happened, now: Callable[[], float]) -> None:
    """Try to deploy a version whose graph is damaged, and one whose graph does not give the answers it should."""
    for version, what, words in (
        (DAMAGED, "a damaged graph", "must have SHA-256"),
        (BAD, "golden answers that are not its graph's", "must load, got serving.errors.BundleError"),
    ):
        result = site.command("deploy", site.path(version))
        happened.lines.append(
            Line(
                f"a bad version must be refused: {what}",
                f"exit code {result.returncode}: {words if words in result.stderr else _last(result.stderr)}",
                result.returncode == 1 and words in result.stderr,
            )
        )
    happened.lines.append(_version_line(site, "a bad version", 0, "", site.first))


def burst_of_corrupt_images(site: Site, happened: Happened, now: Callable[[], float]) -> None:
    """Send many images that are none, beside the load."""
    bodies = [corrupt(kind, seed) for kind in ("PNG", "JPEG", "WebP") for seed in range(3)] + [b"", b"no image"]
    asks = [Ask("corrupt", f"/predictions/{site.name}", body, check=_is_refused) for body in bodies]
    sent = offer(site.url, asks, BURST_PER_SECOND, BURST_S).samples
    problems = [one.problem for one in sent if one.problem is not None]
    got = f"{len(sent) - len(problems)} of {len(sent)}" + "".join(f"; {problem}" for problem in problems[:1])
    happened.lines.append(Line("each corrupt image must be answered with 400 or 415", got, not problems))


def let_clients_hang(site: Site, happened: Happened, now: Callable[[], float]) -> None:
    """Open connections that send a part of a request; half of them go on, a byte now and then."""
    with hanging_clients(site.url, site.name, HANGING) as clients:
        time.sleep(site.bounds.hold_s)
        if site.bounds.hold_s > STILL_S + CLOSED_S:
            still = sum(not client.is_closed() for client in clients if not client.trickles)
            happened.lines.append(
                Line(f"connections that are silent for {STILL_S} s must be closed", f"{still} are open", still == 0)
            )


def _is_refused(status: int, body: bytes) -> str | None:
    return None if status in (400, 415) else f"status must be 400 or 415, got {status}: {body[:200]!r}"


def _ready_line(what: str, site: Site, seconds: float) -> Line:
    most = site.bounds.ready_within_s
    return Line(f"after {what} the server must be ready within {most:g} s", f"{seconds:.1f} s", seconds <= most)


def _version_line(site: Site, command: str, code: int, errors: str, version: int) -> Line:
    answers = site.version(sketch("PNG", 0))
    return Line(
        f"after {command} version {version} must answer",
        f"version {answers}, exit code {code}{_last(errors)}",
        code == 0 and answers == str(version),
    )


def _last(errors: str) -> str:
    """What a command says at the end of its errors."""
    return f": {errors.strip().splitlines()[-1][:300]}" if errors.strip() else ""


FAULTS: Sequence[Fault] = (
    Fault("stop and start", "the server is stopped and started again", 0.08, stop_and_start),
    Fault("worker killed", "a worker's process is killed (SIGKILL)", 0.2, kill_worker),
    Fault("deploy", "a new version is deployed beside the old one", 0.28, deploy),
    Fault("rollback", "and rolled back", 0.34, roll_back),
    Fault("bad versions", "a damaged bundle and one with wrong answers are refused", 0.4, refuse_bad_versions),
    Fault("corrupt images", "a burst of images that are none", 0.46, burst_of_corrupt_images),
    Fault("hanging clients", "connections that send half a request and stall, or trickle", 0.5, let_clients_hang),
)
