"""What builds and runs images: all that is asked of Docker and of buildah.

image = engine.build(Path(), "slim", target="slim")
with engine.run(image, {}) as container: container.execute("id")
"""

import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol


class Container(Protocol):
    """A container that runs, locked down."""

    url: str  # of its port 8080, inside `network`

    def network(self) -> AbstractContextManager[None]:
        """Where the url holds."""

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as its user."""

    def terminate(self) -> None:
        """Send SIGTERM to its main process."""

    def wait(self, timeout_s: float) -> int | None:
        """The exit code of its main process, or None if it has not ended in time."""


class Engine(Protocol):
    """Builds images, and runs them."""

    name: str

    def pull(self, image: str) -> bool:
        """Whether an image could be had from its registry."""

    def load(self, archive: Path, name: str) -> str:
        """Make an image of a tar archive of a root file system."""

    def build(self, folder: Path, name: str, target: str = "", arguments: Mapping[str, str] | None = None) -> str:
        """Build the Dockerfile in a folder; the name of the image."""

    def describe(self, image: str) -> tuple[dict[str, Any], int]:
        """An image's configuration, as Docker writes it, and its bytes."""

    def run(self, image: str, environment: Mapping[str, str]) -> AbstractContextManager[Container]:
        """A container, read-only but for /tmp and /app/.serving, without capabilities; nothing is left of it."""

    def clean(self) -> None:
        """Remove what was built."""
