"""What a batch may take: by a clock that the tests move, and by images that take long."""

import random
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from conftest import encoded

from serving.budget import (
    ARRIVE_S,
    BATCH_S,
    MANY_IMAGES,
    NUMBER_S,
    PIXEL_S,
    QUEUE,
    REQUEST_S,
    SMALL_S,
    WAIT_S,
    Allowance,
    Budget,
    Pace,
    PaceMeter,
)
from serving.bundle import Bundle, InputSpec
from serving.errors import ImageTooLarge, Overloaded, ServingError
from serving.intake import Intake
from serving.limits import DEFAULT_LIMITS, Limits
from serving.parameters import DEFAULT_OPTIONS
from serving.predictor import Predictor
from serving.settings import LEAST_TIMEOUT_S

SPEC = InputSpec(channels=1, height=8, width=8)
SMALL = encoded(np.zeros((8, 8), dtype=np.uint8))
RUNS = 50  # of a graph


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def taken(budget: Budget, clock: Clock, requests: int, wanted_s: float, size: int = 0) -> float:
    """What a batch takes that asks for so many seconds, by requests of a twentieth of a second each."""
    began = clock.now
    with budget.batch([size] * requests) as allowance:
        while wanted_s > 1e-9 and allowance.grants(0.05, 0.0):
            clock.now += 0.05
            wanted_s -= 0.05
    return clock.now - began


def test_a_batch_may_take_so_long_and_one_that_follows_what_is_left() -> None:
    clock = Clock()
    budget = Budget(32, clock)

    assert taken(budget, clock, 5, 9) == pytest.approx(BATCH_S)
    assert taken(budget, clock, 5, 9) == pytest.approx(WAIT_S - BATCH_S - SMALL_S / 4, abs=0.05)
    clock.now += 1  # nobody has waited for them
    assert taken(budget, clock, 5, 9) == pytest.approx(BATCH_S)


@pytest.mark.parametrize("batch_size", [1, 4, 32, 100, 500])
def test_no_request_waits_longer_than_it_should_whatever_is_asked_for(batch_size: int) -> None:
    random_, clock = random.Random(batch_size), Clock()
    budget = Budget(batch_size, clock)
    ahead: deque[float] = deque(maxlen=-(-QUEUE // batch_size))
    waited, longest = 0.0, 0.0
    for _ in range(2000):
        requests = random_.choice((1, batch_size, batch_size))
        seconds = taken(budget, clock, requests, random_.choice((0, 0.05, 0.5, 5)))
        waited = sum(ahead) + seconds
        if requests < batch_size:
            ahead.clear()
        ahead.append(seconds)
        longest = max(longest, waited)

    assert longest <= WAIT_S
    assert longest > WAIT_S / 2


def test_bytes_take_time_before_the_worker_has_them() -> None:
    clock = Clock()
    budget = Budget(32, clock)

    assert taken(budget, clock, 10, 9, size=20_000_000) == pytest.approx(
        WAIT_S - 200_000_000 * ARRIVE_S - SMALL_S / 4, abs=0.05
    )


def test_there_is_always_time_for_small_requests_and_they_take_no_more_than_they_may() -> None:
    clock = Clock()
    budget = Budget(32, clock)
    for _ in range(3):
        taken(budget, clock, 32, 9)

    with budget.batch([0] * 32) as allowance:
        clock.now += 9
        each = SMALL_S / 4 / 32
        assert allowance.lets_read(each)
        assert allowance.grants(each, 9)
        assert not allowance.lets_read(each * 1.01)
        assert not allowance.grants(each * 1.01, 0)


def test_a_request_that_no_batch_has_time_for_is_the_first_of_a_fresh_one() -> None:
    clock = Clock()
    with Budget(32, clock).batch([0, 0]) as allowance:
        assert allowance.grants(9, 0)
        assert not allowance.grants(9, 0)


def test_what_is_read_leaves_half_of_the_time() -> None:
    clock = Clock()
    allowance = Allowance(1.0, is_fresh=False, clock=clock)

    assert allowance.lets_read(0.5)
    clock.now += 0.4
    assert not allowance.lets_read(0.2)
    assert allowance.grants(0.6, 0)
    assert not allowance.grants(0.6, 0.1)


def test_no_batch_reaches_the_response_timeout() -> None:
    worst_s = WAIT_S + REQUEST_S

    assert 2 * worst_s < LEAST_TIMEOUT_S
    assert DEFAULT_LIMITS.max_request_pixels * PIXEL_S < REQUEST_S


def test_a_pace_is_the_least_and_that_of_the_last_runs() -> None:
    meter = PaceMeter()
    assert meter.pace == Pace(0, 0)
    meter.learn(1, 0.5)
    assert meter.pace == Pace(0.5, 0.5)
    for seconds in (1, 1, 4, 3, 2, 2):
        meter.learn(MANY_IMAGES, seconds)
    meter.learn(1, 9)

    assert meter.pace == Pace(1 / MANY_IMAGES, 2 / MANY_IMAGES)
    assert meter.pace.plus(1) == Pace(1 + 1 / MANY_IMAGES, 1 + 2 / MANY_IMAGES)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_requests_that_take_least_are_decoded_and_the_rest_is_refused(threads: int) -> None:
    clock = Clock()
    large = encoded(np.zeros((2000, 2000), dtype=np.uint8))  # is taken for a fifth of a second
    requests = [[large], [SMALL], [large] * 3, [large], [large]]
    allowance = Allowance(0.6, 0.01, is_fresh=False, clock=clock)

    outcomes = Intake(SPEC, Limits(), threads).decode(requests, [Pace(0.1, 0.1)] * 5, allowance)
    refused = [isinstance(outcome, Overloaded) for outcome in outcomes]
    assert refused == [False, False, True, False, True]  # two of the large ones are decoded in no time by this clock
    assert {(one.status, one.code, str(one)) for one in outcomes if isinstance(one, ServingError)} == {
        (503, "overloaded", "the server has too much to do for this request: send it again in a moment")
    }


def test_a_request_of_more_images_than_can_be_computed_in_time_is_told_how_many() -> None:
    intake = Intake(SPEC, Limits(), 1)

    outcome, alone = intake.decode([[SMALL] * 30, [SMALL]], [Pace(0.09, 0.09), Pace(9, 9)], Allowance(1.5))
    assert isinstance(outcome, ImageTooLarge)
    assert str(outcome) == (
        "images of one request must take this server at most 1.4 s, got 30 images that may take 2.7 s: "
        "send at most 15 such images at a time"
    )
    assert isinstance(alone, list)  # a lone image is always taken


def test_so_is_one_whose_images_take_long_to_decode() -> None:
    large = encoded(np.zeros((1000, 2000), dtype=np.uint8))

    [outcome] = Intake(SPEC, Limits(), 1).decode([[large] * 10], [Pace(0.05, 0.05)], Allowance(1.5))
    assert isinstance(outcome, ImageTooLarge)
    assert str(outcome).endswith("got 10 images that may take 1.6 s: send at most 8 such images at a time")


def test_headers_take_time_too() -> None:
    clock = Clock()
    allowance = Allowance(0.02, is_fresh=False, clock=clock)

    [outcome] = Intake(SPEC, Limits(), 1).decode([[SMALL] * 256], [Pace()], allowance)
    assert isinstance(outcome, Overloaded)


@pytest.mark.parametrize("name", ["mnist-mda", "cifar100-lda-best"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_256_images_are_not_too_many_for_the_models_that_come_along(name: str, precision: str) -> None:
    bundle = Bundle.load(Path(__file__).parents[1] / "model_store" / name / "1")
    predictor = Predictor(bundle, threads=1, precision=precision)  # type: ignore[arg-type]
    predictor.warm_up()
    spec = bundle.manifest.input
    for _ in range(RUNS):  # on a busy machine some of them are not disturbed
        predictor.infer(bundle.read_golden()[0])
    image = encoded(np.zeros((spec.height, spec.width), dtype=np.uint8))
    pace = predictor._pace(DEFAULT_OPTIONS)

    [outcome] = Intake(spec, Limits(), 1).decode([[image] * 256], [pace], Allowance(BATCH_S))
    assert not isinstance(outcome, ServingError)
    assert pace.least_s > NUMBER_S * 30
