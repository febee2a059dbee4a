"""How many cores, threads and workers."""

import os
from pathlib import Path

import pytest

from serving.torchserve import cores


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [(8, "200000 100000\n", 2), (8, "50000 100000", 1), (2, "400000 100000", 2), (8, "max 100000", 8), (3, None, 3)],
)
def test_a_containers_quota_counts(
    affinity: int, quota: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(cores, "CGROUP_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)

    assert cores.cores() == expected


@pytest.mark.parametrize(("found", "threads", "workers"), [(1, 1, 1), (2, 2, 1), (4, 4, 1), (6, 4, 1), (16, 4, 4)])
def test_a_worker_for_every_four_cores(found: int, threads: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cores", lambda: found)

    assert (cores.default_threads(), cores.default_workers(0)) == (threads, workers)
    assert cores.default_workers(3) == 6
