"""How many cores, threads and workers."""

import os
from pathlib import Path

import pytest

from serving import cores
from serving.bundle import Precision
from serving.settings import WorkerSettings


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


@pytest.mark.parametrize(
    ("found", "precision", "threads", "workers"),
    [
        (1, "float32", 1, 1),
        (2, "float32", 2, 1),
        (6, "float32", 4, 1),
        (16, "float32", 4, 4),
        (1, "int8", 1, 1),
        (2, "int8", 1, 2),
        (16, "int8", 2, 8),
    ],
)
def test_inferences_side_by_side_fill_the_cores(
    found: int, precision: Precision, threads: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "cores", lambda: found)
    settings = WorkerSettings(precision=precision)

    assert cores.threads(settings) == threads
    assert cores.workers(settings, gpus=0) == workers
    assert cores.workers(settings, gpus=3) == 6


def test_settings_of_an_archive_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cores", lambda: 2)

    assert cores.threads(WorkerSettings(threads=8)) == 8
    assert cores.workers(WorkerSettings(threads=8), gpus=0) == 1
    assert cores.workers(WorkerSettings(workers=3), gpus=0) == 3
