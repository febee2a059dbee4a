"""The engine of one machine: a process a worker, each with a graph of its own, so that no lock is between them."""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait as wait_for
from typing import Any

from serving.batch.courtesy import Courtesy, lower_priority
from serving.batch.engine import EngineError, Layout, Numbered, Progress
from serving.batch.job import Job
from serving.batch.parts import Done, PartWorker
from serving.batch.source import Shard
from serving.errors import ServingError

POLL_S = 0.25
SLOTS = 1024  # of counts; shards that are scored at the same time hardly ever share one
LIVES = 3  # of a shard: one that workers have died over so often is named

_worker: PartWorker | ServingError
_counts: Any
_stop: Any
_courtesy: Courtesy | None


class Stopped(Exception):
    """The run ends before its shards do."""


@dataclass
class LocalEngine:
    """Runs workers as processes of this machine.

    Attributes:
        layout: how they share it.
    """

    layout: Layout
    _context: Any = field(default_factory=lambda: multiprocessing.get_context("spawn"), init=False)

    def run(self, job: Job, shards: Iterable[Numbered], progress: Progress) -> Iterator[Done]:
        """Score shards; workers that die are replaced, and what they had begun is begun again."""
        counts, stop = self._context.RawArray("q", 2 * SLOTS), self._context.RawValue("b", 0)
        hand = _Hand(iter(shards))
        while True:
            with _pool(self._context, job, self.layout, counts, stop) as pool:
                try:
                    yield from _shared_out(pool, self.layout, hand, counts, progress)
                    return
                except BrokenProcessPool:
                    _require_life(hand.take_back(), job)
                except BaseException:
                    stop.value = 1
                    pool.shutdown(cancel_futures=True)
                    raise


@dataclass
class _Hand:
    """The shards that are yet to be scored.

    Attributes:
        rest: those that nobody has had.
        given_back: those whose workers have died.
        out: those that workers have, by what they promise.
        deaths: how often workers have died that had a shard, by its number.
    """

    rest: Iterator[Numbered]
    given_back: list[Numbered] = field(default_factory=list)
    out: dict[Future[Done], Numbered] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)

    def give_to(self, pool: ProcessPoolExecutor) -> bool:
        """Give a pool one more; whether there was one."""
        if not self.given_back and (one := next(self.rest, None)) is not None:
            self.given_back.append(one)
        if not self.given_back:
            return False
        self.out[pool.submit(_score, *self.given_back[0])] = self.given_back[0]  # which raises if the pool is broken
        del self.given_back[0]
        return True

    def take_back(self) -> list[int]:
        """Take back all that workers have, for one has died; which shards that has happened to too often."""
        self.deaths.update(number for number, _ in self.out.values())
        self.given_back = sorted([*self.out.values(), *self.given_back], key=lambda one: one[0])
        self.out.clear()
        return sorted(number for number, count in self.deaths.items() if count == LIVES)


def _require_life(deadly: list[int], job: Job) -> None:
    """Refuse to go on with shards over which workers have died too often."""
    if deadly:
        names = ", ".join(map(job.part_name, deadly))
        raise EngineError(
            f"workers must live, got one killed {LIVES} times over {names}: is there memory enough? What is done is "
            "kept; the same command goes on"
        )


def _pool(context: Any, job: Job, layout: Layout, counts: Any, stop: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(layout.workers, context, _begin, (job, layout, counts, stop))


def _shared_out(
    pool: ProcessPoolExecutor, layout: Layout, hand: _Hand, counts: Any, progress: Progress
) -> Iterator[Done]:
    """Keep every worker busy and one shard ahead."""
    while True:
        while len(hand.out) < 2 * layout.workers and hand.give_to(pool):
            pass
        if not hand.out:
            return
        done, _ = wait(hand.out, POLL_S, FIRST_COMPLETED)
        progress(sum(counts[::2]), sum(counts[1::2]))
        for future in done:
            result = future.result()
            del hand.out[future]
            yield result


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
