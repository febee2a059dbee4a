"""buildah, which needs no daemon, and runc or crun, which run what it has built.

Everything lies in one folder: its storage, and the bundles (configuration and state) of containers.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.deploy.image_check.runtime import RuntimeContainer, configuration, runtime
from serving.deploy.image_check.shell import Failed, Shell

MEGABYTES = {"B": 1e-6, "KB": 1e-3, "MB": 1.0, "GB": 1e3}


class Buildah:
    """Images in a folder.

    Args:
        shell: runs the commands.
        folder: for all that is stored.

    Raises:
        Failed: if there is no buildah, or nothing that runs containers.
    """

    name = "buildah"

    def __init__(self, shell: Shell, folder: Path) -> None:
        if shutil.which("buildah") is None:
            raise Failed(
                "a Docker daemon that answers, or buildah, must be there, got neither: apt-get install buildah"
            )
        self._shell, self._folder, self._runtime = shell, folder, runtime()

    def _run(self, *arguments: str | Path) -> str:
        return self._shell.run(*self._buildah(), *arguments).strip()

    def _buildah(self) -> list[str]:
        return ["buildah", f"--root={self._folder}/images", f"--runroot={self._folder}/mounts"]

    def pull(self, image: str) -> bool:
        """Whether an image could be had from its registry."""
        return self._shell.attempt(*self._buildah(), "pull", image).returncode == 0

    def load(self, archive: Path, name: str) -> str:
        """Make an image of a root file system."""
        container = self._run("from", "scratch")
        self._run("add", container, archive, "/")
        self._run("commit", "--rm", container, f"localhost/{name}")
        return f"localhost/{name}"

    def build(self, folder: Path, name: str, target: str = "", arguments: Mapping[str, str] | None = None) -> str:
        """Build a Dockerfile; in Docker's format, for the other has no health check."""
        given = [f"--build-arg={name}={value}" for name, value in (arguments or {}).items()]
        how = ["--isolation=chroot", "--format=docker", f"--target={target}", f"--tag=localhost/{name}"]
        self._run("build", *how, *given, folder)
        return f"localhost/{name}"

    def describe(self, image: str) -> tuple[dict[str, Any], int]:
        """An image's configuration and its bytes."""
        (size, unit), *_ = (one["size"].split() for one in json.loads(self._run("images", "--json", image)))
        found = json.loads(self._run("inspect", "--type=image", image))
        return found["Docker"]["config"], int(float(size) * MEGABYTES[unit.upper()] * 1e6)

    @contextmanager
    def run(self, image: str, environment: Mapping[str, str]) -> Iterator[RuntimeContainer]:
        """A container that is locked down, in a network of its own."""
        container = self._run("from", image)
        try:
            config, root = self.describe(image)[0], Path(self._run("mount", container))
            user = _user(root, config["User"])
            with tempfile.TemporaryDirectory(dir=self._folder) as bundle:
                (state := Path(bundle, "state")).mkdir(mode=0o700)
                shutil.chown(state, *user)
                written = configuration(config, root, user, state, environment)
                Path(bundle, "config.json").write_text(json.dumps(written))
                with RuntimeContainer.begun(self._shell, self._runtime, Path(bundle)) as running:
                    yield running
        finally:
            self._shell.attempt(*self._buildah(), "rm", container)

    def clean(self) -> None:
        """Remove the images, and let go of the storage."""
        self._shell.attempt(*self._buildah(), "rmi", "--all", "--force")
        self._shell.attempt("umount", self._folder / "images" / "overlay")


def _user(root: Path, user: str) -> tuple[int, int]:
    """Number and group of an image's user, by its own list of users.

    Raises:
        Failed: if it names none by number, as a cluster that refuses root wants it.
    """
    for line in (root / "etc" / "passwd").read_text().splitlines():
        _, _, number, group, *_ = line.split(":")
        if number == user:
            return int(number), int(group)
    raise Failed(f"USER must be the number of a user of the image, got {user!r}")
