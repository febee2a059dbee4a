"""Writes MLServer's settings into the current folder and becomes `mlserver start` on it.

python -m load_tests.peers.mlserver.server BUNDLE PRECISION PORT CORES
"""

import json
import os
import sys
from pathlib import Path

from load_tests.peers.answering import WORKERS, read_arguments, wait_ms

MAX_BATCH = 32
LEAST_WAIT_S = 1e-4  # 0 would leave batching off


def main() -> None:
    """Become MLServer."""
    given = read_arguments()
    server = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": given.port,
        "grpc_port": 0,
        "parallel_workers": int(os.environ.get(WORKERS, "0")),  # 0: in the server's own process
        "metrics_endpoint": None,
        "gzip_enabled": False,
    }
    model = {
        "name": "images",
        "implementation": "load_tests.peers.mlserver.runtime.Classifier",
        "max_batch_size": MAX_BATCH,
        "max_batch_time": max(LEAST_WAIT_S, wait_ms(0) / 1000),
        "parameters": {"extra": {"arguments": list(map(str, given))}},
    }
    Path("settings.json").write_text(json.dumps(server))
    Path("model-settings.json").write_text(json.dumps(model))
    command = str(Path(sys.executable).parent / "mlserver")
    os.execv(command, [command, "start", "."])


if __name__ == "__main__":
    main()
