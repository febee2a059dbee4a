"""The server's private folder: what Java and TorchServe find there before TorchServe's own."""

import shlex
from pathlib import Path

from serving.keys import Keys
from serving.torchserve.patches.classes import changed_classes

CLASS_FOLDER = "classes"
PYTHON = "python"
WORKER = "serving.torchserve.patches.worker"


def write(folder: Path, torchserve_home: Path, python: str, keys: Keys | None) -> None:
    """Write the copies and the script.

    Args:
        folder: the server's private one.
        torchserve_home: folder that holds the package `ts`.
        python: the Python that shall run the workers.
        keys: what clients have to name, if the server asks for keys.

    Raises:
        ServerError: if TorchServe is not the version that this was made for.
    """
    for name, code in changed_classes(torchserve_home, keys).items():
        file = folder / CLASS_FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(code)
    script = folder / PYTHON
    script.write_text(worker_script(python))
    script.chmod(0o700)


def worker_script(python: str) -> str:
    """The script that TorchServe takes for Python: it runs a worker as `worker.py` does, by the Python `python`."""
    return f'#!/bin/sh\nexec {shlex.quote(python)} -P -m {WORKER} "$@"\n'
