"""What every dimension of growth has: curves, and a generator that measures one round of them after the other.

dimension = Dimension("cores", "one core and two", SHAPES, measure, asks=2, starts=2)
for readings in dimension.measure(setting): ...  # a server is up meanwhile, until the generator is closed
"""

import math
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from load_tests.growth.curve import Reading, Shape
from load_tests.wrk import Load, ask
from serving.bundle import MANIFEST, Bundle, manifest_text

Rounds = Generator[list[Reading], None, None]
WARM_UP_S = 2  # Java compiles what it runs often
ANSWERS = 12  # of each connection at least, where they take long
MOST_S = 30  # of one load
START_S, AROUND_S = 6.0, 0.5  # about what a server's start and end take, and what stands around a load


@dataclass(frozen=True)
class Setting:
    """What a run measures.

    Attributes:
        bundle: folder of the bundle that is served.
        seconds: of each load.
        folder: for what it makes.
    """

    bundle: Path
    seconds: int
    folder: Path


@dataclass(frozen=True)
class Dimension:
    """One way in which what a server does can grow.

    Attributes:
        name: of `--only`.
        about: in words.
        shapes: of its curves.
        measure: yields the readings of one round after the other, as long as it is asked to.
        asks: loads of `seconds` in a round, or what takes as long.
        starts: of a server in a round.
        once_s: what stands before the first round.
        has_bundle: whether it serves the bundle that the run is given.
    """

    name: str
    about: str
    shapes: tuple[Shape, ...]
    measure: Callable[[Setting], Rounds]
    asks: int
    starts: int = 0
    once_s: float = 1.0
    has_bundle: bool = True

    def estimate_s(self, seconds: float, rounds: int) -> float:
        """About what so many rounds take."""
        of_round = self.asks * (seconds + AROUND_S) + self.starts * START_S
        return self.once_s + rounds * of_round if rounds else 0.0


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Whatever is begun in the block runs on so many of this process's cores.

    Raises:
        ValueError: if there are fewer.
    """
    mine = os.sched_getaffinity(0)
    if not 1 <= count <= len(mine):
        raise ValueError(f"cores must be from 1 to {len(mine)}, got {count}")
    os.sched_setaffinity(0, sorted(mine)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def renamed(bundle: Path, name: str, folder: Path) -> Path:
    """A copy of a bundle that is called otherwise; its digests are as they were."""
    loaded = Bundle.load(bundle)
    copy = folder / name / str(loaded.manifest.version)
    copy.mkdir(parents=True)
    for file in loaded.manifest.files:
        shutil.copy(loaded.path / file, copy / file)
    manifest = loaded.manifest.model_copy(update={"name": name})
    (copy / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
    return copy


def warm(url: str, body: Path, connections: int, seconds: int) -> int:
    """Ask for a moment; how long a load must last to have enough answers, where one takes long."""
    load = ask(url, body, connections, min(WARM_UP_S, seconds))
    enough = ANSWERS * load.p50 / 1000
    return max(seconds, min(MOST_S, math.ceil(enough)))


def failed(load: Load, seconds: float) -> float:
    """The share of a load's requests that failed."""
    asked = load.failed + load.per_second * seconds
    return load.failed / asked if asked else 1.0


def rate(curve: str, x: float, load: Load, seconds: float, work: float = 1.0) -> Reading:
    """Answers a second as a reading."""
    return Reading(curve, x, load.per_second, work, failed(load, seconds))


def known(names: Sequence[str], dimensions: Sequence[Dimension]) -> list[Dimension]:
    """The dimensions of these names, all if there are none, in their own order.

    Raises:
        ValueError: if there is none of a name.
    """
    have = [one.name for one in dimensions]
    for name in names:
        if name not in have:
            raise ValueError(f"--only must be one of {', '.join(have)}, got {name!r}")
    return [one for one in dimensions if not names or one.name in names]
