"""Whether int8 brings anything on the CPU at hand: both graphs of a bundle in turn, timed in a process of their own.

    python -m serving.speedup model_store/mnist-mda/1 2     # by 2 threads: float32's time over int8's

It is measured because a CPU's flags do not tell: the same graph is 3 times as fast where there are instructions for
products of 8 bits, and no faster than float32 on some CPUs without.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from serving.errors import ServingError

MEASURED_S = 0.3
MIN_ROUNDS = 3
WORTHWHILE = 1.1
TIMEOUT_S = 120
_PROJECT_ROOT = Path(__file__).resolve().parents[1]


def measured_speedup(bundle_dir: Path, threads: int) -> float:
    """How many times as fast as its float32 graph a bundle's int8 graph computes here.

    Args:
        bundle_dir: folder of the bundle.
        threads: of one inference.

    Returns:
        The median over rounds of both graphs on the golden images, to one decimal place.

    Raises:
        ServingError: if they cannot be computed.
    """
    command = [sys.executable, "-m", "serving.speedup", str(bundle_dir), str(threads)]
    paths = [str(_PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        return round(float(done.stdout), 1)
    except subprocess.CalledProcessError as exc:
        reason = exc.stderr.strip().splitlines()[-1:] or ["no word"]
        raise ServingError(f"both graphs of {bundle_dir} must compute, got {reason[0]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise ServingError(f"both graphs of {bundle_dir} must compute within {TIMEOUT_S} s, got no end") from exc


def told(model: str, speedup: float) -> str:
    """What a speedup means for who serves a model in int8."""
    if speedup < WORTHWHILE:
        return f"int8 brings nothing on this CPU ({speedup:.1f} times float32's speed): serve {model} in float32"
    return f"int8 computes {model} {speedup:.1f} times as fast as float32 here"


def _compare(bundle_dir: Path, threads: int) -> float:
    from serving.bundle import Bundle
    from serving.runtimes import open_runtime

    bundle = Bundle.load(bundle_dir)
    images, _ = bundle.read_golden()
    slow, fast = (open_runtime(bundle, "onnx", "cpu", threads, precision) for precision in ("float32", "int8"))
    for run in (slow, fast):
        run(images)
    ratios: list[float] = []
    end = time.perf_counter() + MEASURED_S
    while time.perf_counter() < end or len(ratios) < MIN_ROUNDS:
        began = time.perf_counter()
        slow(images)
        between = time.perf_counter()
        fast(images)
        ratios.append((between - began) / (time.perf_counter() - between))
    return statistics.median(ratios)


if __name__ == "__main__":
    print(_compare(Path(sys.argv[1]), int(sys.argv[2])))
