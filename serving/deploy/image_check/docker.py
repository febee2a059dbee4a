"""Docker, by its command line."""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from serving.deploy.image_check.shell import Shell

POLL_S = 0.1
PREFIX = "discriminant-check-"
LOCKED_DOWN = (
    "--read-only",
    "--tmpfs=/tmp",
    "--volume=/app/.serving",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)


class DockerContainer:
    """A container of Docker's.

    Args:
        shell: runs the commands.
        number: of the container, as Docker counts.
    """

    def __init__(self, shell: Shell, number: str) -> None:
        self._shell, self._number = shell, number
        self.url = "http://" + shell.run("docker", "port", number, "8080").split()[0]

    def network(self) -> AbstractContextManager[None]:
        """The machine's."""
        return nullcontext()

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self._shell.attempt("docker", "exec", self._number, *command)

    def terminate(self) -> None:
        """Send SIGTERM to its main process."""
        self._shell.run("docker", "kill", "--signal", "TERM", self._number)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, if it comes in time."""
        deadline = time.monotonic() + timeout_s
        while self._state("Running") == "true":
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_S)
        return int(self._state("ExitCode"))

    def _state(self, name: str) -> str:
        return self._shell.run("docker", "inspect", f"--format={{{{.State.{name}}}}}", self._number).strip()


class Docker:
    """Images and containers of a Docker daemon."""

    name = "docker"

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._made: list[str] = []

    def pull(self, image: str) -> bool:
        """Whether the daemon has an image or gets it."""
        has = self._shell.attempt("docker", "image", "inspect", image).returncode == 0
        return has or self._shell.attempt("docker", "pull", image).returncode == 0

    def load(self, archive: Path, name: str) -> str:
        """Make an image of a root file system."""
        self._made.append(PREFIX + name)
        self._shell.run("docker", "import", archive, self._made[-1])
        return self._made[-1]

    def build(self, folder: Path, name: str, target: str = "", arguments: Mapping[str, str] | None = None) -> str:
        """Build a Dockerfile."""
        self._made.append(PREFIX + name)
        given = [f"--build-arg={name}={value}" for name, value in (arguments or {}).items()]
        self._shell.run("docker", "build", f"--target={target}", *given, "--tag", self._made[-1], folder)
        return self._made[-1]

    def describe(self, image: str) -> tuple[dict[str, Any], int]:
        """An image's configuration and its bytes."""
        (found,) = json.loads(self._shell.run("docker", "image", "inspect", image))
        return found["Config"], found["Size"]

    @contextmanager
    def run(self, image: str, environment: Mapping[str, str]) -> Iterator[DockerContainer]:
        """A container that is locked down, with its port on a free one of the loopback address."""
        given = [f"--env={name}={value}" for name, value in environment.items()]
        how = ["--detach", "--publish=127.0.0.1::8080", *LOCKED_DOWN, *given]
        number = self._shell.run("docker", "run", *how, image).strip()
        try:
            yield DockerContainer(self._shell, number)
        finally:
            self._shell.attempt("docker", "logs", number)
            self._shell.attempt("docker", "rm", "--force", "--volumes", number)

    def clean(self) -> None:
        """Remove the images that were made."""
        for image in reversed(self._made):
            self._shell.attempt("docker", "rmi", image)
