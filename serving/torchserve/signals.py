"""SIGINT and SIGTERM: raised where a command can undo what it has begun, held back where it cannot."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import NoReturn

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asks for the end; Python would turn a KeyboardInterrupt that meets an `exec` into another exit code."""


def raise_interrupted() -> None:
    """Have either signal raise `Interrupted` in the main thread from now on."""
    for number in NUMBERS:
        signal.signal(number, _raise)


@contextmanager
def held_back() -> Iterator[None]:
    """Keep either signal from what the block does, and deliver it when that is done; an error goes before it.

    Only the main thread gets signals, so elsewhere there is nothing to hold back. A mask would reach the processes that
    the block starts; a handler does not.
    """
    arrived: list[int] = []
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                stack.callback(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL)
                signal.signal(number, lambda number, frame: arrived.append(number))
        yield
    if arrived:
        signal.raise_signal(arrived[0])


@contextmanager
def finishing() -> Iterator[None]:
    """Keep either signal from the last that a command does: it asks for the end, which has come with the block's."""
    with suppress(Interrupted, KeyboardInterrupt), held_back():
        yield


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted("a signal came")
