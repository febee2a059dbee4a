"""Becomes `bentoml serve` on `service.py`.

python -m load_tests.peers.bentoml.server BUNDLE PRECISION PORT CORES
"""

import os
import sys
from pathlib import Path

from load_tests.peers.answering import read_arguments

SERVICE = "load_tests.peers.bentoml.service:Classifier"


def main() -> None:
    """Become BentoML."""
    given = read_arguments()
    environment = {"PEER_ARGUMENTS": os.pathsep.join(map(str, given)), "BENTOML_HOME": str(Path.cwd())}
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", "127.0.0.1", "--port", str(given.port)]
    os.execve(command[0], command, {**os.environ, **environment})


if __name__ == "__main__":
    main()
