"""How a job's shards are shared out: an engine runs `PartWorker`s somewhere and hands back what they have done.

An engine decides nothing about a table. `local.py` runs workers as processes of this machine, `on_ray.py` as actors of
a Ray cluster.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from serving.batch.job import Job
from serving.batch.parts import Done
from serving.batch.source import Shard
from serving.cores import cores
from serving.errors import ServingError

LIVES = 3  # of a shard: one that workers have died over so often is named
GPU_WORKERS = 2  # while one computes, the other encodes and writes

Numbered = tuple[int, Shard]
Progress = Callable[[int, int], None]  # images so far, and how many of them got an error


class EngineError(ServingError):
    """Workers cannot be had, or keep dying."""

    code = "engine_error"


@dataclass(frozen=True)
class Layout:
    """How workers share a machine.

    Attributes:
        workers: how many.
        threads: of one inference on the CPU.
        decoders: threads of each that decode ahead of the graph; one decodes in its turn.
        nice: whether they leave the machine to others.
    """

    workers: int
    threads: int = 1
    decoders: int = 1
    nice: bool = False


class Engine(Protocol):
    """Scores shards, in any order."""

    def run(self, job: Job, shards: Iterable[Numbered], progress: Progress) -> Iterator[Done]:
        """Score shards, as many at a time as there are workers.

        Args:
            job: what is scored.
            shards: with their numbers; they are taken as workers get free.
            progress: hears now and then how many images this run has scored.

        Raises:
            ServingError: whatever a worker refuses, or EngineError.
        """
        ...


class Remaining:
    """The shards of a run that are yet to be scored, those that workers have in hand among them.

    Args:
        job: what is scored.
        shards: with their numbers.

    Attributes:
        in_hand: those that workers have, by number.
    """

    def __init__(self, job: Job, shards: Iterable[Numbered]) -> None:
        self._job = job
        self._untouched = iter(shards)
        self._given_back: list[Numbered] = []
        self._deaths: Counter[int] = Counter()
        self.in_hand: dict[int, Shard] = {}

    def take(self) -> Numbered | None:
        """One for a worker; None if there is none left that nobody has in hand."""
        one = self._given_back.pop(0) if self._given_back else next(self._untouched, None)
        if one is not None:
            self.in_hand[one[0]] = one[1]
        return one

    def finish(self, number: int) -> None:
        """A part is there."""
        del self.in_hand[number]

    def give_back(self, numbers: Iterable[int]) -> None:
        """Take shards back from workers that have died.

        Raises:
            EngineError: if workers have died over one of them too often.
        """
        lost = sorted(numbers)
        self._deaths.update(lost)
        returned = [(number, self.in_hand.pop(number)) for number in lost]
        self._given_back = sorted(returned + self._given_back, key=lambda one: one[0])
        if deadly := [number for number in lost if self._deaths[number] == LIVES]:
            names = ", ".join(map(self._job.part_name, deadly))
            raise EngineError(
                f"workers must live, got one killed {LIVES} times over {names}: is there memory enough? What is done "
                "is kept; the same command goes on"
            )


def default_layout(device: str, workers: int | None, threads: int | None, *, nice: bool) -> Layout:
    """A worker of one thread a core, which wait for each other the least; on a GPU two that decode on all cores."""
    if device == "cpu":
        each = threads or 1
        return Layout(workers or max(1, cores() // each), each, each, nice)
    count = workers or GPU_WORKERS
    return Layout(count, threads or 1, max(1, cores() // count), nice)
