"""The keeper: a small process beside TorchServe that begins again what has died and kills what hangs.

It has the exporter as its child, and begins it again when it has ended. A worker or an exporter that has gone silent
(see `heartbeat.py`) it kills; Java fills the place of a worker by itself. It says so in logs/keeper.log, and ends, with
the exporter, when Java has ended. Run by the launcher: python -m serving.torchserve.keeper STATE HOST PORT PID
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

from serving.torchserve import process
from serving.torchserve.heartbeat import HEARTBEATS, forget_heartbeat, hung

_POLL_S = 1.0
_PATIENCE = 3  # looks in a row; after a pause of the whole machine the first one finds everybody silent
_LONGEST_PAUSE_S = 30.0


class Child:
    """A process that is begun again when it has ended: at once, then after pauses that double while it soon ends."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._pause_s = _POLL_S
        self._begin()

    def keep(self) -> None:
        """Begin it again if it has ended and its pause is over."""
        status, now = self._process.poll(), time.monotonic()
        if status is None or now < self._begun + self._pause_s:
            return
        if now > self._begun + 2 * _LONGEST_PAUSE_S:
            self._pause_s = _POLL_S
        say(f"{self._command[2]} has ended with {status}; begun again")
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._begin()

    def end(self) -> None:
        """End it and close what it reads from, for good."""
        self._process.kill()
        self._process.communicate()

    def _begin(self) -> None:
        self._begun = time.monotonic()
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE)  # so that it knows when we end


def keep(state: Path, host: str, port: str, pid: int) -> None:
    """Keep workers and exporter until the server whose process is `pid` has ended."""
    exporter = Child([sys.executable, "-m", process.EXPORTER, str(state), host, port])
    looks: Counter[int] = Counter()
    try:
        while process.is_running(pid):
            exporter.keep()
            ages = hung(state / HEARTBEATS)
            looks = Counter({one: looks[one] + 1 for one in ages})
            for one in (one for one, count in looks.items() if count >= _PATIENCE):
                if not end_hung(one, ages[one], pid):
                    forget_heartbeat(state / HEARTBEATS, one)
            time.sleep(_POLL_S)
    finally:
        exporter.end()


def end_hung(silent: int, age_s: float, server: int) -> bool:
    """Kill a process that has gone silent, unless it has ended, and its number is nobody's or another program's.

    Returns:
        Whether it was still there.
    """
    for one in (*process.members(server), *process.members(os.getpid())):
        if one.pid == silent:
            one.kill()
            say(f"killed process {silent}, which had said nothing for {age_s:.1f} s")
            return True
    return False


def say(what: str) -> None:
    """Write a line of the log; where none can be written, there is more to do than that."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{datetime.now(UTC).isoformat(timespec='seconds')} {what}\n".encode())


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
