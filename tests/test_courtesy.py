"""How long a nice worker rests, on a clock and a machine that the test makes up."""

from dataclasses import dataclass, field

import pytest

from serving.batch.courtesy import MOST_S, RESTS, Courtesy
from serving.cores import cores


@dataclass
class Machine:
    """Time that passes as the test says, and whose it is."""

    now: float = 0.0
    own: float = 0.0
    busy: float = 0.0
    slept: list[float] = field(default_factory=list)

    def courtesy(self, workers: int = 1) -> Courtesy:
        return Courtesy(workers, lambda: self.now, lambda: self.own, lambda: self.busy, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def batch(self, seconds: float, workers: int = 1, others: float = 0.0) -> None:
        """A batch of each worker, beside others that keep so many cores busy."""
        self.now += seconds
        self.own += seconds
        self.busy += seconds * (workers + others)


@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_else_means_no_rest(workers: int) -> None:
    machine = Machine()
    courtesy = machine.courtesy(workers)
    for _ in range(3):
        machine.batch(0.1, workers)
        courtesy.rest()

    assert machine.slept == pytest.approx([0, 0, 0])


def test_a_rest_is_as_long_as_others_are_busy_and_as_the_batch_took() -> None:
    machine = Machine()
    courtesy = machine.courtesy()
    machine.batch(0.1, others=0.5 * cores())
    courtesy.rest()

    assert machine.slept == pytest.approx([RESTS * 0.5 * 0.1])


def test_others_are_looked_at_while_it_rests_too() -> None:
    machine = Machine()
    courtesy = machine.courtesy()
    machine.batch(0.1, others=cores())
    courtesy.rest()
    machine.batch(0.1)  # nobody else, neither in the rest nor now
    courtesy.rest()

    assert machine.slept == pytest.approx([RESTS * 0.1, 0])


def test_no_rest_is_endless() -> None:
    machine = Machine()
    courtesy = machine.courtesy()
    machine.batch(60, others=cores())
    courtesy.rest()

    assert machine.slept == [MOST_S]
