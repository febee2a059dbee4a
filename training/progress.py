"""Progress on the terminal. Without a terminal there are no bars, only the lines that are worth keeping."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich import progress
from rich.console import Console

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


class Steps:
    """A bar over the steps of a training, and lines above it."""

    def __init__(self, bar: progress.Progress, task: progress.TaskID):
        self._bar, self._task = bar, task

    def advance(self) -> None:
        """One step done."""
        self._bar.advance(self._task)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._bar.console.print(text)


@contextmanager
def steps(description: str, total: int, completed: int = 0) -> Iterator[Steps]:
    """Show the progress of a training of `total` steps."""
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        yield Steps(bar, bar.add_task(description, total=total, completed=completed))
