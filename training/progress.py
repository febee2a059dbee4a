"""Progress on the terminal. Without a terminal there are no bars, only the lines that are worth keeping.

A bar may be shown while another is; the inner one stands below.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich import progress
from rich.console import Console
from rich.text import Text

console = Console(highlight=False)
T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a bar that vanishes at the end."""
    return iter(
        progress.track(
            items, description, total=total, transient=True, console=console, disable=not console.is_terminal
        )
    )


def say(text: str) -> None:
    """Print a line as it is: not wrapped, so that a path or a command in it can be copied, and without markup."""
    console.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a line on the standard error, in yellow where there is colour."""
    Console(stderr=True, highlight=False).print(Text(text, style="yellow"), soft_wrap=True)


def note(text: str) -> None:
    """Print a line on the standard error, so that it is in the way of no output that a program reads."""
    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


class Steps:
    """A bar over the steps of a training, or whatever else comes one after the other."""

    def __init__(self, bar: progress.Progress, task: progress.TaskID):
        self._bar, self._task = bar, task

    def advance(self, count: int = 1) -> None:
        """So many steps done."""
        self._bar.advance(self._task, count)

    def describe(self, text: str) -> None:
        """Change what stands before the bar."""
        self._bar.update(self._task, description=text)


class _Rate(progress.ProgressColumn):
    """How many images a second come to their end."""

    def render(self, task: progress.Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} images/s")


@contextmanager
def steps(description: str, total: int, completed: int = 0, *, images: bool = False) -> Iterator[Steps]:
    """Show a bar of `total` steps, which vanishes at the end; lines may be printed meanwhile.

    Args:
        description: what stands before the bar.
        total: how many steps there are.
        completed: how many were done before.
        images: whether a step is an image, so that the bar says how many a second there are.
    """
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        *([_Rate()] if images else []),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        yield Steps(bar, bar.add_task(description, total=total, completed=completed))
