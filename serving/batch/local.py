"""The engine of one machine: a process a worker, each with a graph of its own, so that no lock is between them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait as wait_for
from typing import Any

from serving.batch.courtesy import Courtesy, lower_priority
from serving.batch.engine import Layout, Numbered, Progress, Remaining
from serving.batch.job import Job
from serving.batch.parts import Done, PartWorker
from serving.batch.source import Shard
from serving.errors import ServingError

POLL_S = 0.25
SLOTS = 1024  # of counts; shards that are scored at the same time hardly ever share one
SPAWN = multiprocessing.get_context("spawn")

_worker: PartWorker | ServingError
_counts: Any
_stop: Any
_courtesy: Courtesy | None


class Stopped(Exception):
    """The run ends before its shards do."""


@dataclass(frozen=True)
class LocalEngine:
    """Runs workers as processes of this machine.

    Attributes:
        layout: how they share it.
    """

    layout: Layout

    def run(self, job: Job, shards: Iterable[Numbered], progress: Progress) -> Iterator[Done]:
        """Score shards; workers that die are replaced, and what they had begun is begun again."""
        counts, stop = SPAWN.RawArray("q", 2 * SLOTS), SPAWN.RawValue("b", 0)
        remaining = Remaining(job, shards)
        while True:
            with ProcessPoolExecutor(self.layout.workers, SPAWN, _begin, (job, self.layout, counts, stop)) as pool:
                try:
                    yield from _shared_out(pool, self.layout.workers, remaining, counts, progress)
                    return
                except BrokenProcessPool:
                    remaining.give_back(remaining.in_hand)
                except BaseException:
                    stop.value = 1
                    pool.shutdown(cancel_futures=True)
                    raise


def _shared_out(
    pool: ProcessPoolExecutor, workers: int, remaining: Remaining, counts: Any, progress: Progress
) -> Iterator[Done]:
    """Keep every worker busy and one shard ahead."""
    running: set[Future[Done]] = set()
    while True:
        while len(running) < 2 * workers and (one := remaining.take()) is not None:
            running.add(pool.submit(_score, *one))
        if not running:
            return
        finished, running = wait(running, POLL_S, FIRST_COMPLETED)
        progress(sum(counts[::2]), sum(counts[1::2]))
        for future in finished:
            done = future.result()
            remaining.finish(done.number)
            yield done


def _begin(job: Job, layout: Layout, counts: Any, stop: Any) -> None:
    """What a worker does first. A signal from the terminal is its parent's, and its parent's end is its own."""
    global _worker, _counts, _stop, _courtesy
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if layout.nice:
        lower_priority()
    _counts, _stop, _courtesy = counts, stop, Courtesy(layout.workers) if layout.nice else None
    try:
        _worker = PartWorker(job, layout.threads, layout.decoders)
    except ServingError as error:  # from here it would only break the pool
        _worker = error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _score(number: int, shard: Shard) -> Done:
    if isinstance(_worker, ServingError):
        raise _worker
    return _worker.score(number, shard, partial(_tell, 2 * (number % SLOTS)))


def _tell(slot: int, images: int, errors: int) -> None:
    """Count a batch in its shard's own slot: a lock would stay taken for ever if its holder were killed."""
    if _stop.value:
        raise Stopped
    _counts[slot] += images
    _counts[slot + 1] += errors
    if _courtesy is not None:
        _courtesy.rest()
