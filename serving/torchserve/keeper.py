"""The keeper: a small process beside TorchServe that begins again what has died and kills what hangs.

It has the exporter as its child, and begins it again when it has ended. A worker or an exporter that has gone silent
(see `heartbeat.py`) it kills; Java fills the place of a worker by itself. It says so in logs/keeper.log, and ends, with
the exporter, when Java has ended. Run by the launcher:
python -m serving.torchserve.keeper STATE HOST PORT PID STARTED
"""

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from serving.torchserve import process
from serving.torchserve.heartbeat import HEARTBEATS, forget_heartbeat, hung

_POLL_S = 1.0
_PATIENCE = 3  # looks in a row; after a pause of the whole machine the first one finds everybody silent
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class Child:
    """A process that is begun again when it has ended, after a pause if it soon ends."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._pause_s = _SHORTEST_PAUSE_S
        self._begin()

    def keep(self) -> None:
        """Begin it again if it has ended and its pause, which counts from its beginning, is over."""
        status, lived_s = self._process.poll(), time.monotonic() - self._begun
        if status is None or lived_s < self._pause_s:
            return
        self._pause_s = next_pause_s(self._pause_s, lived_s)
        self._process.communicate()  # closes what it read from
        say(f"{' '.join(self._command)} has ended with {status} and is begun again")
        try:
            self._begin()
        except OSError as exc:  # neither memory nor process ids are left for it; there may be later
            say(f"it cannot be begun: {exc}")

    def end(self) -> None:
        """End it for good."""
        self._process.kill()
        self._process.communicate()

    def _begin(self) -> None:
        self._begun = time.monotonic()
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE)  # so that it knows when we end


def next_pause_s(last_s: float, lived_s: float) -> float:
    """The pause between two beginnings after one of `last_s`: twice that, unless the process lived for a while."""
    return _SHORTEST_PAUSE_S if lived_s > 2 * _LONGEST_PAUSE_S else min(2 * last_s, _LONGEST_PAUSE_S)


def keep(state: Path, host: str, port: str, java: process.Identity) -> None:
    """Keep workers and exporter until the server that `java` leads has ended."""
    exporter = Child([sys.executable, "-m", process.EXPORTER, str(state), host, port])
    looks: Counter[int] = Counter()
    try:
        while process.is_running(java):
            exporter.keep()
            ages = hung(state / HEARTBEATS)
            looks = Counter({one: looks[one] + 1 for one in ages})
            for one in (one for one, count in looks.items() if count >= _PATIENCE):
                if not end_hung(one, ages[one], java):
                    forget_heartbeat(state / HEARTBEATS, one)
            time.sleep(_POLL_S)
    finally:
        exporter.end()


def end_hung(silent: int, age_s: float, java: process.Identity) -> bool:
    """Kill a process that has gone silent, unless it has ended, and its number is nobody's or another program's.

    Returns:
        Whether it was still there.
    """
    for one in (*process.members(java), *process.members(process.own())):
        if one.pid == silent:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended this moment
                one.kill()
            say(f"killed process {silent}, which had said nothing for {age_s:.1f} s")
            return True
    return False


def say(what: str) -> None:
    """Write a line of the log; where none can be written, there is more to do than that."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{datetime.now(UTC).isoformat(timespec='seconds')} {what}\n".encode())


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2], sys.argv[3], process.Identity(int(sys.argv[4]), int(sys.argv[5])))
