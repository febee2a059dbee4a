"""Signals that come at a bad moment."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from serving.torchserve.signals import NUMBERS, Interrupted, finishing, held_back, raise_interrupted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signals that raise `Interrupted`, as in a command."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    raise_interrupted()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def block(number: int, done: list[str]) -> None:
    with held_back():
        with held_back():
            os.kill(os.getpid(), number)
            done.append("inner")
        done.append("outer")


def failing_block() -> None:
    with finishing():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("within")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_held_back_until_the_outer_block_is_done(number: signal.Signals) -> None:
    done: list[str] = []

    with pytest.raises(Interrupted):
        block(number, done)
    assert done == ["inner", "outer"]
    with pytest.raises(Interrupted):
        signal.raise_signal(number)


def test_an_error_goes_before_a_signal() -> None:
    with pytest.raises(ValueError, match=r"^within$"):
        failing_block()
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)


def test_the_last_of_a_command_is_finished() -> None:
    with finishing():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGINT)


def test_a_process_that_the_block_starts_is_ended_by_a_signal() -> None:
    with held_back():
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    child.terminate()

    assert child.wait(30) == -signal.SIGTERM


def test_a_thread_has_nothing_to_hold_back() -> None:
    done: list[str] = []

    def in_a_thread() -> None:
        with held_back():
            done.append("block")

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert done == ["block"]
