"""How a server shares a machine's cores among its workers."""

import os
from pathlib import Path

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


def default_threads() -> int:
    """Threads of one inference on the CPU."""
    return min(cores(), MAX_THREADS)


def default_workers(gpus: int) -> int:
    """Workers of a model that does not say how many."""
    return WORKERS_PER_GPU * gpus or cores() // default_threads()
