"""The image that the Dockerfile builds on: its own, or one like it where that cannot be pulled.

default_base(Path("Dockerfile"))                            # python:3.11.14-slim-bookworm
make_base(engine, shell, "bookworm", folder)                # Debian, with the Python that it has
"""

import re
import shutil
from pathlib import Path

from serving.deploy.image_check.engine import Engine
from serving.deploy.image_check.shell import Failed, Shell

PACKAGES = "ca-certificates,python3,python3-venv,python-is-python3"
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


def default_base(dockerfile: Path) -> str:
    """What a Dockerfile names as its argument BASE.

    Raises:
        Failed: if it names none.
    """
    found = re.search(r"^ARG BASE=(.*)$", dockerfile.read_text(), re.MULTILINE)
    if found is None:
        raise Failed(f"{dockerfile} must name its base by ARG BASE=..., got no such line")
    return found[1]


def make_base(engine: Engine, shell: Shell, release: str, folder: Path) -> str:
    """An image of a release of Debian with its own Python.

    Raises:
        Failed: if it cannot be made.
    """
    if shutil.which("mmdebstrap") is None:
        raise Failed(
            "the Dockerfile's base must be there to be pulled, got none; apt-get install mmdebstrap for another"
        )
    archive = folder / "base.tar"
    smaller = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    shell.run("mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", *smaller, release, archive)
    image = engine.load(archive, "base")
    archive.unlink()
    return image
