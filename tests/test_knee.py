"""The search for the knee, on a simulated queue whose knee is known, and on servers that lie."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from load_tests.open_loop.knee import Knee, NoKneeError, Slo, find_knee
from load_tests.open_loop.load import arrivals
from load_tests.open_loop.offered import Offered, Sample

SERVICE_S = 0.002
SECONDS = 40
SLO = Slo(p99_ms=20)


def queue(rate: float, seed: int, seconds: float = SECONDS) -> Offered:
    """One server that takes the same time for each request, first come, first served."""
    seconds = min(seconds, 15_000 / rate)  # as many are enough
    due = np.array(arrivals(rate, seconds, seed))
    places = np.arange(len(due))
    ends = SERVICE_S * (places + 1) + np.maximum.accumulate(due - SERVICE_S * places)
    latencies = 1000 * (ends - due)
    samples = [Sample(float(at), 0.0, float(took), "", None) for at, took in zip(due, latencies, strict=True)]
    return Offered(samples, seconds, 0, 0.0)


def share_within(wait_s: float, rate: float) -> float:
    """Of requests to an M/D/1 queue, the share that waits no longer (Erlang 1909; Gross et al., 4th ed., 5.1.5)."""
    load = rate * SERVICE_S
    ahead = [rate * (wait_s - served * SERVICE_S) for served in range(int(wait_s / SERVICE_S) + 1)]
    return (1 - load) * math.fsum((-x) ** k / math.factorial(k) * math.exp(x) for k, x in enumerate(ahead))


def true_knee(slo: Slo) -> float:
    """The rate at which 99 % of the requests are answered within the bound."""
    low, high = 0.0, 1 / SERVICE_S
    for _ in range(60):
        middle = (low + high) / 2
        holds = share_within(slo.p99_ms / 1000 - SERVICE_S, middle) >= 0.99
        low, high = (middle, high) if holds else (low, middle)
    return low


def check(knee: Knee, gap: float, confirmations: int = 3) -> None:
    """What holds of every knee."""
    for rate, word in ((knee.per_second, True), (knee.breaks_at, False)):
        runs = [run for run in knee.tried if run.per_second == rate]
        assert sum((run.broken is None) == word for run in runs) > confirmations / 2
        assert len(runs) <= confirmations
    assert 1 < knee.breaks_at / knee.per_second <= gap
    assert knee.runs
    assert len({run.seed for run in knee.tried}) == len(knee.tried)


@pytest.mark.parametrize("start", [1, 37, 300, 470, 3000])
@pytest.mark.parametrize("p99_ms", [8, 20])
def test_finds_the_knee_of_a_queue_from_wherever_it_starts(start: float, p99_ms: float) -> None:
    slo = Slo(p99_ms=p99_ms)

    knee = find_knee(queue, start, slo)

    check(knee, gap=1.06)
    assert knee.per_second == pytest.approx(true_knee(slo), rel=0.08)
    assert len(knee.tried) < 30


def test_formula_and_simulation_agree() -> None:
    rate = true_knee(SLO)

    assert 300 < rate < 1 / SERVICE_S
    assert queue(rate, seed=0, seconds=400).percentile(99) == pytest.approx(SLO.p99_ms, rel=0.15)


def test_a_search_can_be_repeated() -> None:
    first, second = find_knee(queue, 100, SLO), find_knee(queue, 100, SLO)

    assert first.per_second == second.per_second
    assert [run.per_second for run in first.tried] == [run.per_second for run in second.tried]


def steps(holds: Callable[[float, int], bool]) -> Callable[[float, int], Offered]:
    """Stands for a server that holds or breaks as it is told, which no real one does."""

    def try_rate(rate: float, seed: int) -> Offered:
        return Offered([Sample(0.0, 0.0, 1.0 if holds(rate, seed) else 1000.0, "", None)], 1, 0, 0.0)

    return try_rate


def disturbed(seed: int) -> Callable[[float, int], Offered]:
    """A server that holds 333 requests/s, on a machine on which one run in twenty says the opposite of the truth."""
    lies = np.random.default_rng(seed).random(1000) < 1 / 20
    return steps(lambda rate, run: (rate <= 333) != bool(lies[run]))


@pytest.mark.parametrize(("confirmations", "right", "runs"), [(3, 0.92, 12), (5, 0.98, 16)])
def test_disturbed_runs_seldom_move_the_knee(confirmations: int, right: float, runs: int) -> None:
    knees = [find_knee(disturbed(seed), 200, SLO, confirmations=confirmations) for seed in range(200)]

    for knee in knees:
        check(knee, 1.06, confirmations)
    assert sum(333 / 1.06 <= knee.per_second <= 333 for knee in knees) >= right * len(knees)
    assert sum(len(knee.tried) for knee in knees) < runs * len(knees)


def test_a_lucky_run_above_the_knee_and_an_unlucky_one_below_are_found_out() -> None:
    runs: dict[float, int] = {}

    def holds(rate: float, _: int) -> bool:
        runs[rate] = runs.get(rate, 0) + 1
        first = runs[rate] == 1
        return (rate <= 100) != (first and (100 < rate < 130 or 80 < rate <= 100))

    knee = find_knee(steps(holds), 40, SLO)

    check(knee, gap=1.06)
    assert 100 / 1.06 < knee.per_second <= 100 < knee.breaks_at


def test_low_goodput_breaks_though_answers_are_quick() -> None:
    def dropping(rate: float, seed: int) -> Offered:
        held = queue(min(rate, 250), seed, seconds=5)
        dropped = [Sample(0.0, 0.0, 1.0, "", "full")] * round(5 * max(0, rate - 250))
        return Offered([*held.samples, *dropped], 5, 0, 0.0)

    knee = find_knee(dropping, 50, SLO)

    check(knee, gap=1.06)
    assert knee.per_second == pytest.approx(250 / 0.97, rel=0.07)
    broken = next(run.broken for run in knee.tried if run.per_second == knee.breaks_at and run.broken)
    assert broken.startswith("goodput must be at least 97% of the offered rate, got 9")


def test_a_server_that_never_holds_has_no_knee() -> None:
    with pytest.raises(
        NoKneeError, match=r"^some rate must hold, got none down to 0.5 requests/s: p99 must be at most"
    ):
        find_knee(steps(lambda *_: False), 100, SLO)


def test_a_server_that_always_holds_has_no_knee() -> None:
    with pytest.raises(NoKneeError, match=r"^some rate must break an objective, got none up to 5000 requests/s$"):
        find_knee(steps(lambda *_: True), 100, SLO, most=5000)


@pytest.mark.parametrize("bad", [{"start": 0.0}, {"gap": 1.0}, {"confirmations": 2}])
def test_senseless_searches_are_refused(bad: dict[str, float]) -> None:
    arguments = {"start": 1.0, "gap": 1.06, "confirmations": 3} | bad

    with pytest.raises(ValueError, match=r"^start must be above 0, gap above 1 and confirmations odd, got "):
        find_knee(queue, **arguments)  # type: ignore[arg-type]


def test_no_requests_at_all_break_nothing() -> None:
    assert SLO.broken(Offered([], 1, 0, 0.0)) is None
