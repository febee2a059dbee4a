"""How a machine's memory is shared with Java."""

from pathlib import Path

import psutil
import pytest

from serving.errors import ServerError
from serving.torchserve import memory

MIB = 2**20


@pytest.mark.parametrize(("limit", "expected"), [("1073741824\n", 2**30), ("max\n", 2**35), ("9" * 15, 2**35)])
def test_a_containers_limit_counts(limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = psutil.virtual_memory()._replace(total=2**35)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(memory, "CGROUP_LIMIT", tmp_path / "memory.max")

    assert memory.memory_bytes() == 2**35
    (tmp_path / "memory.max").write_text(limit)
    assert memory.memory_bytes() == expected


@pytest.mark.parametrize(
    ("total_mib", "batches", "queue"),
    [(64_000, [32], 128), (64_000, [32, 32, 64], 128), (2_048, [4], 128), (1_024, [32], 17), (2_048, [64, 64], 21)],
)
def test_the_heap_holds_as_many_requests_as_may_come(
    total_mib: int, batches: list[int], queue: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "cores", lambda: 2)
    size = 4 * MIB
    found = memory.divide(total_mib * MIB, batches, size)

    held = sum(queue + 4 * min(batch, queue) for batch in batches)
    assert found.queue == queue
    assert found.heap_bytes == 128 * MIB + size * (8 + held) <= total_mib * MIB / 2
    assert found.uploads_bytes == total_mib * MIB // 8


def test_a_memory_that_holds_no_request_is_refused() -> None:
    with pytest.raises(ServerError, match=r"^half of the memory, 128 MiB, must hold requests of 16777216 bytes to 2 "):
        memory.divide(256 * MIB, [32, 32], 16 * MIB)
