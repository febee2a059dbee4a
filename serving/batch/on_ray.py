"""The engine of a Ray cluster: an actor a worker, anywhere in it; what dies is scored again by another.

Actors are given one shard at a time. One that is lost gives its shard back, and a new one takes its place as soon as
the cluster has room. The bundle travels to the actors; images and output must lie where all machines find them.
"""

import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serving.batch.engine import EngineError, Numbered, Progress
from serving.batch.job import JOB, Job
from serving.batch.parts import Done, PartWorker
from serving.batch.source import Shard
from serving.bundle import MANIFEST, Bundle
from serving.errors import ServingError

POLL_S = 1.0
PATIENCE_S = 600.0  # for the first worker, or the next if all are lost; a cluster may have to grow first
CONNECT_S = 10.0
LIVES = 3  # of a shard: one that its workers have died over so often is named


@dataclass(frozen=True)
class RayEngine:
    """Runs workers as actors of a Ray cluster.

    Attributes:
        address: of the cluster; None starts one on this machine.
        device: `cpu`, or `cuda`, of which every actor claims one.
        workers: how many; None takes as many as the cluster has room for when the run begins.
        threads: of each, which are the CPUs that it claims.
    """

    address: str | None = None
    device: str = "cpu"
    workers: int | None = None
    threads: int = 1

    def run(self, job: Job, shards: Iterable[Numbered], progress: Progress) -> Iterator[Done]:
        """Score shards."""
        ray = _ray()
        started = not ray.is_initialized()
        if started:
            _connect(ray, self.address)
        try:
            crew = _Crew(ray, self._actor(ray), job, ray.put(_files(job.bundle)), self.threads)
            yield from crew.score(iter(shards), self.workers or self._room(ray), progress)
        finally:
            if started:
                ray.shutdown()

    def _actor(self, ray: Any) -> Any:
        gpus = 0 if self.device == "cpu" else 1
        return ray.remote(num_cpus=self.threads, num_gpus=gpus, max_concurrency=2)(PartActor)

    def _room(self, ray: Any) -> int:
        resources = ray.cluster_resources()
        by_cpu = int(resources.get("CPU", 0)) // self.threads
        room = by_cpu if self.device == "cpu" else min(by_cpu, int(resources.get("GPU", 0)))
        if not room:
            raise EngineError(f"the cluster must have room for a worker on {self.device}, got {dict(resources)}")
        return room


class PartActor:
    """A worker somewhere; Ray makes an actor of it."""

    def __init__(self, job: Job, files: dict[str, bytes], threads: int) -> None:
        if job.records.read(JOB) is None:
            raise EngineError(
                f"out must be where every machine of the cluster writes, got {job.store}, which is not there on "
                f"{socket.gethostname()}: choose a shared folder or a URL such as s3://bucket/answers"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="bundle-")
        for name, content in files.items():
            Path(self._folder.name, name).write_bytes(content)
        self._worker = PartWorker(replace(job, bundle=self._folder.name), threads, threads)
        self._now = (0, 0)

    def ready(self) -> str:
        """Where it runs, once it does."""
        return socket.gethostname()

    def score(self, number: int, shard: Shard) -> Done:
        """Write a part."""
        self._now = (0, 0)
        return self._worker.score(number, shard, self._tell)

    def now(self) -> tuple[int, int]:
        """Images of the shard in hand so far, and how many of them got an error."""
        return self._now

    def _tell(self, images: int, errors: int) -> None:
        self._now = (self._now[0] + images, self._now[1] + errors)


@dataclass
class _Crew:
    """Actors and what they do.

    Attributes:
        coming: actors that are not there yet, by the promise that they will be.
        busy: by the promise of its part, an actor and its shard.
    """

    ray: Any
    actor: Any
    job: Job
    files: Any
    threads: int
    coming: dict[Any, Any] = field(default_factory=dict)
    busy: dict[Any, tuple[Any, Numbered]] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    given_back: list[Numbered] = field(default_factory=list)
    lives: dict[int, int] = field(default_factory=dict)

    def score(self, shards: Iterator[Numbered], size: int, progress: Progress) -> Iterator[Done]:
        for _ in range(size):
            self._call_up()
        images = errors = 0
        last = time.monotonic()
        while self._give_out(shards):
            ready, _ = self.ray.wait([*self.busy, *self.coming], timeout=POLL_S, fetch_local=False)
            for promise in ready:
                if (done := self._settled(promise)) is not None:
                    images, errors = images + done.figures.images, errors + done.figures.failed
                    yield done
            progress(*self._with_shards_in_hand(images, errors))
            last = time.monotonic() if self.busy else last
            if time.monotonic() - last > PATIENCE_S:
                raise EngineError(f"the cluster must have room for a worker, got none for {PATIENCE_S:.0f} s")

    def _call_up(self) -> None:
        actor = self.actor.remote(self.job, self.files, self.threads)
        self.coming[actor.ready.remote()] = actor

    def _give_out(self, shards: Iterator[Numbered]) -> bool:
        """Give every idle actor a shard; whether there is anything left to wait for."""
        while self.idle:
            one = self.given_back.pop(0) if self.given_back else next(shards, None)
            if one is None:
                return bool(self.busy)
            actor = self.idle.pop()
            self.busy[actor.score.remote(*one)] = (actor, one)
        return True

    def _settled(self, promise: Any) -> Done | None:
        """Take in what an actor has done, or that it is there or lost."""
        errors = self.ray.exceptions
        if (actor := self.coming.pop(promise, None)) is not None:
            try:
                self.ray.get(promise)
            except errors.RayActorError as lost:
                raise _as_refused(lost) from lost
            self.idle.append(actor)
            return None
        actor, one = self.busy.pop(promise)
        try:
            done: Done = self.ray.get(promise)
        except errors.RayActorError:
            self._lose(one)
            return None
        except errors.RayTaskError as failed:
            raise failed.cause if isinstance(failed.cause, ServingError) else failed from None
        self.idle.append(actor)
        return done

    def _lose(self, one: Numbered) -> None:
        """An actor has died over a shard."""
        number = one[0]
        self.lives[number] = self.lives.get(number, LIVES) - 1
        if not self.lives[number]:
            raise EngineError(
                f"workers must live, got {LIVES} lost over {self.job.part_name(number)}: is there memory enough? What "
                "is done is kept; the same command goes on"
            )
        self.given_back.append(one)
        self._call_up()

    def _with_shards_in_hand(self, images: int, errors: int) -> tuple[int, int]:
        asked = [actor.now.remote() for actor, _ in self.busy.values()]
        answered, _ = self.ray.wait(asked, num_returns=len(asked), timeout=POLL_S) if asked else ([], [])
        for promise in answered:
            try:
                more, failed = self.ray.get(promise)
            except self.ray.exceptions.RayError:  # it is lost, which shows elsewhere
                continue
            images, errors = images + more, errors + failed
        return images, errors


def _ray() -> Any:
    try:
        import ray
    except ImportError as exc:
        raise EngineError("ray must be installed for --engine ray, got none: pip install 'discriminant[ray]'") from exc
    return ray


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _reach(address)
        ray.init(address, log_to_driver=False, configure_logging=False)
    except (OSError, RuntimeError) as exc:
        raise EngineError(f"a Ray cluster must answer at {address}, got {exc}") from exc


def _reach(address: str | None) -> None:
    """See that something listens at HOST:PORT, which Ray itself would wait for by the minute."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _files(folder: str) -> dict[str, bytes]:
    """A bundle's files by their names."""
    bundle = Bundle.load(folder)
    return {name: (bundle.path / name).read_bytes() for name in (MANIFEST, *bundle.manifest.files)}


def _as_refused(lost: Any) -> Exception:
    """Why an actor did not come to be: what it refused, or that it died."""
    text = str(lost)
    cause = getattr(lost, "cause", None)
    return cause if isinstance(cause, ServingError) else EngineError(f"a worker must start, got {text.strip()}")
