"""Load test: a mix of every kind of request, each answer checked, objectives that decide the exit code.

    locust -f load_tests/locustfile.py --headless --host http://127.0.0.1:8080 --users 8 --run-time 30s
    locust -f load_tests/locustfile.py --headless --host ... --users 64 --processes 2 --shape spike --mix mix.toml

Before the load each request is asked once, alone; under load every answer must be the same again (`same_answer.py`), so
one that got another request's image, a lost neighbour of a broken image, or a number that batching changed is a
failure. The file of `--mix` says what is asked; the exit code is 1 if an objective in the file of `--slo` is broken.
"""

import logging
import random
import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import gevent
import locust.stats
from gevent.event import Event
from locust import FastHttpUser, LoadTestShape, constant, events, task
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from load_tests.asked.asks import Ask
from load_tests.asked.kinds import WrongAlone, key_headers
from load_tests.asked.same_answer import TOLERANCE
from load_tests.users.deck import Deck, make_deck, pack, unpack
from load_tests.users.figures import bucket
from load_tests.users.load_report import finish
from load_tests.users.mix import DEFAULT_MIX, FileError, Mix, read_mix
from load_tests.users.shapes import SECONDS, SHAPES
from load_tests.users.slos import DEFAULT_SLOS, read_slos

MOST_AT_ONCE = 100  # users begun or ended a second; locust warns of more
DECK, DECK_WANTED = "deck", "deck wanted"  # messages
CHART_POINTS = 300  # at most, in the charts of the HTML report

locust.stats.bucket_response_time = bucket
locust.stats.PERCENTILES_TO_CHART = [0.5, 0.99]  # a third has nearly the colour of the second
logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request otherwise
asks: list[Ask] = []  # what users send, in their order; empty until it is known
known = Event()
decks: list[Deck] = []  # the one of this load, on a master
refused: list[str] = []  # why there is no load, if there is none


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Options beside locust's own."""
    parser.add_argument("--mix", default=str(DEFAULT_MIX), help="TOML file: kinds of requests, models, weights")
    parser.add_argument("--model", default="", help="model to ask instead of those in the mix; several with commas")
    parser.add_argument("--slo", default=str(DEFAULT_SLOS), help="TOML file: what must hold, or exit code 1")
    parser.add_argument("--shape", choices=[*SHAPES], default="steady", help="how users come and go; --users at most")
    parser.add_argument("--summary", default="", help="JSON file to write, with all figures")
    help_ = "how far a probability may be from the one alone"
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=help_)


@events.init.add_listener
def prepare(environment: Environment, runner: Any, **_: Any) -> None:
    """Refuse bad files before any request; on a worker, wait for what the master sends."""
    options = environment.parsed_options
    if options.headless or options.worker:  # so that Ctrl-C ends a load as its time does, with all reports
        gevent.signal_handler(signal.SIGINT, runner.quit)
    if isinstance(runner, WorkerRunner):
        runner.register_message(DECK, receive)
        runner.send_message(DECK_WANTED)  # it may have joined a load that runs already
        return
    if isinstance(runner, MasterRunner):
        runner.register_message(DECK_WANTED, send)
    locust.stats.HISTORY_STATS_INTERVAL_SEC = max(1, _seconds(options) // CHART_POINTS)
    try:
        if not 0 <= options.tolerance < 1:
            raise FileError(f"--tolerance must be at least 0 and below 1, got {options.tolerance:g}")
        _mix(options)
        read_slos(Path(options.slo))
    except FileError as exc:
        raise SystemExit(f"error: {exc}") from exc


@events.test_start.add_listener
def ask_alone(environment: Environment, **_: Any) -> None:
    """Learn the right answers from an idle server, and let the clock begin after that."""
    runner, options = environment.runner, environment.parsed_options
    if not isinstance(runner, LocalRunner | MasterRunner):  # a worker, which may have no runner yet
        return
    known.clear()
    refused.clear()
    try:
        mix = _mix(options)
        print(f"asking {', '.join(mix.models)} each request of the mix once, alone", file=sys.stderr)
        deck = make_deck(environment.host, mix, options.tolerance)
    except (FileError, WrongAlone) as exc:
        refused.append(str(exc))  # which ends the load at the next tick
        return
    decks[:] = [deck]
    if isinstance(runner, MasterRunner):
        runner.send_message(DECK, pack(deck))
    _deal(deck)
    runner.stats.clear_all()
    environment.shape_class.reset_time()


def send(environment: Environment, msg: Any) -> None:
    """On a master: give a worker the deck, if there is one yet; otherwise it comes when the load begins."""
    if decks:
        environment.runner.send_message(DECK, pack(decks[0]), msg.node_id)


def receive(environment: Environment, msg: Any) -> None:
    """On a worker: take what the master has learned."""
    _deal(unpack(msg.data))


@events.test_stopping.add_listener
def count_processes(environment: Environment, **_: Any) -> None:
    """Remember how many processes sent requests, while they are there."""
    if not isinstance(environment.runner, WorkerRunner):
        environment.load_processes = environment.runner.worker_count


@events.quitting.add_listener
def summarise(environment: Environment, **_: Any) -> None:
    """Print figures and objectives, write the summary, set the exit code."""
    if refused:
        print(f"error: {refused[0]}", file=sys.stderr)
        environment.process_exit_code = 1
    elif not isinstance(environment.runner, WorkerRunner):
        environment.process_exit_code = finish(environment, _mix(environment.parsed_options))


class WrongAnswer(Exception):
    """What locust shows in its tables and its report, where a text would be shown as Python's."""

    __repr__ = Exception.__str__


class Shape(LoadTestShape):
    """Users as `--shape`, `--users` and `--run-time` say."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """How many users there are to be now; locust asks every second, and begins before the deck is known."""
        options = self.runner.environment.parsed_options
        users, seconds = options.num_users or 1, _seconds(options)
        elapsed = self.get_run_time() if known.is_set() else 0
        if elapsed >= seconds or refused:
            return None
        return SHAPES[options.shape](elapsed, seconds, users, options.spawn_rate or 1), min(users, MOST_AT_ONCE)


class Client(FastHttpUser):
    """Sends one request after the other, without pause."""

    wait_time = constant(0)
    default_headers = {"Accept": "application/json", **key_headers()}  # noqa: RUF012  locust's own attribute

    def on_start(self) -> None:
        """Begin somewhere in the mix."""
        known.wait()
        self.place = random.randrange(len(asks))

    @task
    def ask(self) -> None:
        """Whatever is next."""
        ask = asks[self.place]
        self.place = (self.place + 1) % len(asks)
        with self.client.post(
            ask.path, name=ask.kind, data=ask.body, headers=dict(ask.headers), catch_response=True
        ) as response:
            problem = _no_answer(response) or ask.check(response.status_code, response.content or b"")
            response.failure(WrongAnswer(problem)) if problem else response.success()


def _no_answer(response: Any) -> str | None:
    return None if response.status_code else f"request must be answered, got {type(response.error).__name__}"


def _deal(deck: Deck) -> None:
    asks[:] = deck.asks()
    known.set()


def _seconds(options: Namespace) -> int:
    return options.run_time or SECONDS[options.shape]


def _mix(options: Namespace) -> Mix:
    return read_mix(Path(options.mix), [name for name in options.model.split(",") if name])
