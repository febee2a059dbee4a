"""The one change that is made to TorchServe: a worker gets at once whatever has gathered while it was busy.

TorchServe waits for a batch to fill in whole milliseconds, and told to wait 0 it takes two requests at most. Told to
wait 1, which it must be, it has a lone request wait for nothing a third of what a small model takes to answer. The unit
is one constant of one class; in a copy of it, found before TorchServe's own, 1 is a microsecond.
"""

import hashlib
import zipfile
from pathlib import Path

from serving.errors import ServerError

MAX_BATCH_DELAY = 1  # in TorchServe's unit
JAR = "ts/frontend/model-server.jar"
CLASS = "org/pytorch/serve/wlm/Model.class"
SHA256 = "7c5523f1fe77fe79aa32665469e17725e70518692abcf4987989ef72f10d4cff"
VERSION = "0.12.0"


def changed_class(torchserve_home: Path) -> bytes:
    """The class with the other unit; its place on the class path is CLASS.

    Args:
        torchserve_home: folder that holds the package `ts`.

    Raises:
        ServerError: if TorchServe has another class there than the version that this was made for.
    """
    jar = torchserve_home / JAR
    with zipfile.ZipFile(jar) as file:
        code = file.read(CLASS)
    if hashlib.sha256(code).hexdigest() != SHA256:
        raise ServerError(f"{jar} must be TorchServe {VERSION}'s, got another {CLASS}: install torchserve=={VERSION}")
    return code.replace(b"MILLISECONDS", b"MICROSECONDS")
