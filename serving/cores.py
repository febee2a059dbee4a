"""How a server shares a machine's cores among its workers."""

import os
from pathlib import Path

from serving.bundle import Precision
from serving.settings import WorkerSettings

MAX_THREADS = 4  # of one inference; beyond, batches of small images are computed faster side by side
WORKERS_PER_GPU = 2  # while one computes, the other decodes
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """How many cores this process may use: its affinity, or less if it lies in a container with less time."""
    mine = len(os.sched_getaffinity(0))
    try:
        quota, period = CGROUP_QUOTA.read_text().split()
        return max(1, min(mine, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or no quota, which it calls "max"
        return mine


def threads(settings: WorkerSettings) -> int:
    """Threads of one inference on the CPU, by a model's settings or by default."""
    return settings.threads or _default_threads(settings.precision)


def workers(settings: WorkerSettings, gpus: int) -> int:
    """Workers of a model, by its settings or by default."""
    return settings.workers or WORKERS_PER_GPU * gpus or max(1, cores() // threads(settings))


def _default_threads(precision: Precision) -> int:
    """In int8 a graph is so quick that what one thread does around it matters as much: fewer threads, more workers."""
    most = min(cores(), MAX_THREADS)
    return max(1, most // 2) if precision == "int8" else most
