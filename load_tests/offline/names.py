"""What `score` takes before its first images are done, when there are ten million of them: seconds and memory.

The input is a text file with the paths of a few images, over and over. The command is stopped, as by Ctrl-C, when each
core has written two parts of the table. The first image is scored about as long before the first part is there as each
core takes for its second.
"""

import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from load_tests.memory import PeakMemory
from load_tests.offline.commands import MEGABYTE, ROOT, score_command
from serving.cores import cores

LOOK_S = 0.02


def measure_names(paths: Sequence[Path], count: int, bundle: Path, scratch: Path) -> dict[str, Any]:
    """Score a text file of `count` paths until the first parts are done.

    Raises:
        RuntimeError: if the command ends before.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        names, out = Path(folder, "names.txt"), Path(folder, "answers")
        write_names(names, paths, count)
        began = time.perf_counter()
        process = subprocess.Popen(
            score_command(names, bundle, out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        with PeakMemory(process.pid) as peak:
            times = [_seconds_to_parts(process, out, parts, began) for parts in range(1, 2 * cores() + 1)]
        process.send_signal(signal.SIGINT)
        process.communicate()
    a_part = times[-1] - times[cores() - 1]  # each core's second
    return {
        "count": count,
        "seconds_to_first_image": round(max(0.0, times[0] - a_part), 1),
        "seconds_to_first_part": round(times[0], 1),
        "peak_mb": round(peak.bytes / MEGABYTE),
    }


def write_names(file: Path, paths: Sequence[Path], count: int) -> None:
    """A text file of `count` absolute paths, one a line."""
    lines = [f"{path.resolve()}\n" for path in paths]
    whole, rest = divmod(count, len(lines))
    with file.open("w") as out:
        for _ in range(whole):
            out.writelines(lines)
        out.writelines(lines[:rest])


def _seconds_to_parts(process: subprocess.Popen[str], out: Path, parts: int, began: float) -> float:
    while len(list(out.glob("part-*.parquet"))) < parts:
        if process.poll() is not None:
            _, errors = process.communicate()
            raise RuntimeError(f"score must write {parts} parts, got exit code {process.returncode}:\n{errors[-4000:]}")
        time.sleep(LOOK_S)
    return time.perf_counter() - began
