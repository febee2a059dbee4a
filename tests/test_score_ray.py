"""Scoring on a real Ray cluster of two nodes, both on this machine, one of which goes while it is scored."""

import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import SIZE, encoded, serving, until

from serving.batch.engine import EngineError, Numbered, Progress
from serving.batch.job import Job
from serving.batch.on_ray import RayEngine
from serving.batch.options import ScoreOptions
from serving.batch.parts import Done
from serving.batch.places import place_of
from serving.batch.score import score
from serving.batch.sources import open_source
from serving.batch.store import Store

PART = 10
OPTIONS = ScoreOptions(batch_size=4, shard_images=PART)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and another node, of one CPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(4)
    for number in range(400):
        (root / f"{number:03}.png").write_bytes(encoded(rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)))
    (root / "123.png").write_bytes(b"broken")
    return root


def actors() -> list[psutil.Process]:
    """The processes of this cluster's workers."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        if (one.info["cmdline"] or [""])[0].startswith("ray::PartActor"):
            found.append(one)
    return found


@dataclass
class Disturbed:
    """An engine to which things happen as parts come in.

    Attributes:
        engine: the real one.
        events: what happens after how many parts.
    """

    engine: RayEngine
    events: dict[int, Any]

    def run(self, job: Job, shards: Iterable[Numbered], progress: Progress) -> Iterator[Done]:
        for count, done in enumerate(self.engine.run(job, shards, progress)):
            yield done
            if count in self.events:
                self.events.pop(count)()


def test_a_killed_worker_and_a_lost_node_change_nothing(
    cluster: Any, folder: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    second = cluster.worker_nodes.copy().pop()
    killed: list[int] = []

    def kill_a_worker() -> None:
        until(lambda: len(actors()) == 2)
        killed.append(actors()[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    engine = Disturbed(RayEngine(cluster.address), {4: kill_a_worker, 12: lambda: cluster.remove_node(second)})
    source, out = open_source(str(folder)), tmp_path / "ray.parquet"
    summary = score(source, bundle_dir, str(out), OPTIONS, engine=engine)

    serving("score", folder, "--bundle", bundle_dir, "--out", tmp_path / "local.parquet", "--batch-size", 4,
            "--shard-images", PART, "--allow-errors", check=True)  # fmt: skip
    assert (summary.figures.images, summary.figures.failed) == (400, 1)
    assert killed
    assert not engine.events
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "local.parquet"), check_metadata=True)


def test_a_worker_that_is_lost_before_it_is_there_is_replaced(
    cluster: Any, folder: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    def kill_the_first() -> None:
        until(lambda: len(actors()) == 1)
        os.kill(actors()[0].pid, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_the_first)
        engine = RayEngine(cluster.address, workers=1)
        summary = score(open_source(str(folder)), bundle_dir, str(tmp_path / "out"), OPTIONS, engine=engine)
        killed.result()

    assert (summary.figures.images, summary.figures.failed) == (400, 1)


def test_a_machine_that_does_not_see_the_table_says_so(
    cluster: Any, folder: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    unseen = Job(open_source(str(folder)), str(bundle_dir), OPTIONS, Store(place_of(tmp_path / "elsewhere")))
    shards = enumerate(unseen.source.shards(PART))

    with pytest.raises(EngineError, match=r"^out must be where every machine of the cluster writes, got .*elsewhere, "):
        list(RayEngine(cluster.address, workers=1).run(unseen, shards, lambda images, errors: None))


def test_what_a_worker_refuses_is_refused(cluster: Any, folder: Path, bundle_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"must have room for a worker on cuda, got \{.*'CPU'"):
        score(
            open_source(str(folder)),
            bundle_dir,
            str(tmp_path / "out.parquet"),
            ScoreOptions(device="cuda"),
            engine=RayEngine(cluster.address, device="cuda"),
        )
    assert not (tmp_path / "out.parquet.parts").exists()


def test_no_cluster_is_said_at_once(folder: Path, bundle_dir: Path, tmp_path: Path) -> None:
    refused = serving("score", folder, "--bundle", bundle_dir, "--out", tmp_path / "out.parquet", "--engine", "ray",
                      "--ray-address", "127.0.0.1:1")  # fmt: skip

    assert refused.returncode == 1
    assert "a Ray cluster must answer at 127.0.0.1:1, got" in refused.stderr
