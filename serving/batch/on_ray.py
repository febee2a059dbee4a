"""The engine of a Ray cluster: an actor a worker, anywhere in it; what dies is scored again by another.

Actors are given one shard at a time. One that is lost gives its shard back, and a new one takes its place as soon as
the cluster has room. The bundle travels to the actors; images and output must lie where all machines find them.
"""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from serving.batch.engine import LIVES, EngineError, Numbered, Progress, Remaining
from serving.batch.job import JOB, Job
from serving.batch.parts import Done, PartWorker
from serving.batch.source import Shard
from serving.bundle import MANIFEST, Bundle
from serving.errors import ServingError

POLL_S = 1.0
PATIENCE_S = 600.0  # for the first worker, or the next if all are lost; a cluster may have to grow first
CONNECT_S = 10.0


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
            actor, files = self._actor(ray), ray.put(_files(job.bundle))
            crew = _Crew(ray, partial(actor.remote, job, files, self.threads), Remaining(job, shards))
            yield from crew.score(self.workers or self._room(ray), progress)
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
        self._folder = tempfile.TemporaryDirectory(prefix="bundle-")
        for name, content in files.items():
            Path(self._folder.name, name).write_bytes(content)
        self._now = (0, 0)
        self._worker: PartWorker | ServingError
        try:
            _require_job(job)
            self._worker = PartWorker(replace(job, bundle=self._folder.name), threads, threads)
        except ServingError as error:  # from here it would look like a death
            self._worker = error

    def ready(self) -> None:
        """Come back once it is ready.

        Raises:
            ServingError: if it cannot be.
        """
        if isinstance(self._worker, ServingError):
            raise self._worker

    def score(self, number: int, shard: Shard) -> Done:
        """Write a part."""
        if isinstance(self._worker, ServingError):
            raise self._worker
        self._now = (0, 0)
        return self._worker.score(number, shard, self._tell)

    def now(self) -> tuple[int, int]:
        """Images of the shard in hand so far, and how many of them got an error."""
        return self._now

    def _tell(self, images: int, errors: int) -> None:
        self._now = (self._now[0] + images, self._now[1] + errors)


def _require_job(job: Job) -> None:
    """Refuse a machine that does not see what the others write."""
    if job.records.read(JOB) is None:
        raise EngineError(
            f"out must be where every machine of the cluster writes, got {job.store}, which is not there on "
            f"{socket.gethostname()}: choose a shared folder or a URL such as s3://bucket/answers"
        )


@dataclass
class _Crew:
    """Actors and what they do.

    Attributes:
        call_up: makes an actor.
        coming: actors that are not there yet, by the promise that they will be.
        busy: actors and the numbers of their shards, by the promises of the parts.
        idle: the others.
        stillborn: how many were lost before they were there, since one last was.
    """

    ray: Any
    call_up: Callable[[], Any]
    remaining: Remaining
    coming: dict[Any, Any] = field(default_factory=dict)
    busy: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    stillborn: int = 0

    def score(self, size: int, progress: Progress) -> Iterator[Done]:
        """Score what remains with so many actors."""
        for _ in range(size):
            self._replace()
        images = errors = 0
        last = time.monotonic()
        while self._give_out():
            ready, _ = self.ray.wait([*self.busy, *self.coming], timeout=POLL_S, fetch_local=False)
            for promise in ready:
                if (done := self._settled(promise)) is not None:
                    images, errors = images + done.figures.images, errors + done.figures.failed
                    yield done
            progress(*self._with_shards_in_hand(images, errors))
            last = time.monotonic() if self.busy else last
            if time.monotonic() - last > PATIENCE_S:
                raise EngineError(f"the cluster must have room for a worker, got none for {PATIENCE_S:.0f} s")

    def _replace(self) -> None:
        actor = self.call_up()
        self.coming[actor.ready.remote()] = actor

    def _give_out(self) -> bool:
        """Give every idle actor a shard; whether there is anything left to wait for."""
        while self.idle and (one := self.remaining.take()) is not None:
            actor = self.idle.pop()
            self.busy[actor.score.remote(*one)] = (actor, one[0])
        return bool(self.busy) or not self.idle

    def _settled(self, promise: Any) -> Done | None:
        """Take in what an actor has done, or that it is there or lost."""
        errors = self.ray.exceptions
        actor, number = self.busy.pop(promise, (None, None))
        actor = actor or self.coming.pop(promise)
        try:
            done: Done | None = self.ray.get(promise)
        except errors.RayActorError as lost:
            self._lose(number, lost)
            return None
        except errors.RayTaskError as failed:
            raise failed.cause if isinstance(failed.cause, ServingError) else failed from None
        self.idle.append(actor)
        self.stillborn = 0
        if done is not None:
            self.remaining.finish(done.number)
        return done

    def _lose(self, number: int | None, lost: Exception) -> None:
        """An actor has died, over a shard or before it had one; another takes its place."""
        if number is not None:
            self.remaining.give_back([number])
        else:
            self.stillborn += 1
            if self.stillborn == LIVES:
                raise EngineError(f"a worker must start, got {LIVES} lost one after the other: {lost}") from lost
        self._replace()

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
