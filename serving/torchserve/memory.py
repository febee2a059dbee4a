"""How much memory Java may use, and how many requests it may hold, so that none that a client sends can end it.

Bodies that are on their way lie outside the heap; where they find no more room there, their connection is closed and
all others go on. A body that has arrived lies in the heap until it is answered, and a heap that is full ends Java. So a
model's queue is as long as the heap can bear when every request in it is as large as may be.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from serving.budget import QUEUE
from serving.cores import cores
from serving.errors import ServerError

MIB = 2**20
HEAP_SHARE, UPLOADS_SHARE = 2, 8  # the whole memory is so many times as much
OWN_BYTES = 128 * MIB  # what Java takes without any request
COPIES_AT_WORK = 4  # of a request in a worker's batch: its body, and the batch while it grows to twice its length
COPIES_ON_ARRIVAL = 2  # of a request in each of Java's threads
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Memory:
    """What Java gets.

    Attributes:
        heap_bytes: of its heap.
        uploads_bytes: of all bodies that are on their way.
        queue: requests of a model that may wait.
    """

    heap_bytes: int
    uploads_bytes: int
    queue: int


def memory_bytes() -> int:
    """The memory of this machine, or of the container that this process lies in."""
    total = psutil.virtual_memory().total
    try:
        return min(total, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or no limit, which it calls "max"
        return total


def divide(total: int, batches: Collection[int], max_request_bytes: int) -> Memory:
    """Java's part of a memory of `total` bytes.

    Args:
        total: of the machine.
        batches: of each model that may be served at a time, how many requests its workers get at once.
        max_request_bytes: the largest request that is read.

    Raises:
        ServerError: if not even one request of each model fits.
    """
    arriving = 2 * cores() * COPIES_ON_ARRIVAL  # Java has two threads a core that read
    for queue in range(QUEUE, 0, -1):
        held = sum(queue + COPIES_AT_WORK * min(batch, queue) for batch in batches)
        heap = OWN_BYTES + max_request_bytes * (arriving + held)
        if heap <= total // HEAP_SHARE:
            return Memory(heap, total // UPLOADS_SHARE, queue)
    raise ServerError(
        f"half of the memory, {total // HEAP_SHARE // MIB} MiB, must hold requests of {max_request_bytes} bytes to "
        f"{len(batches)} models, got too many: serve fewer, or lower --max-request-bytes"
    )
