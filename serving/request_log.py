"""The request log: one JSON line a request, in a file that all workers share.

    {"time": "2026-01-01T12:00:00.123+00:00", "level": "INFO", "request_id": "...", "model": "mnist-mda",
     "version": "1", "status": 200, "images": 1, "errors": [], "batch": 4, "seconds": 0.0061}

`request_id` is the client's X-Request-Id, or else the one that the server puts into its answer. Nothing of an image is
logged.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from concurrent_log_handler import ConcurrentRotatingFileHandler

REQUESTS_FILE = "requests.jsonl"
MAX_BYTES = 20 * 1024 * 1024
MAX_OLD_FILES = 10


class RequestLog:
    """Writes the lines of one worker.

    Args:
        folder: of the file.
        model: name of the model.
        version: of the model.
    """

    def __init__(self, folder: Path, model: str, version: str) -> None:
        self._model = {"model": model, "version": version}
        self._file = ConcurrentRotatingFileHandler(
            str(folder / REQUESTS_FILE), maxBytes=MAX_BYTES, backupCount=MAX_OLD_FILES, encoding="utf-8"
        )

    def write(self, entries: Sequence[dict[str, Any]]) -> None:
        """Log the requests of one batch."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        head = {"time": time, "level": "INFO"}
        text = b"\n".join(orjson.dumps(head | self._model | entry) for entry in entries).decode()
        self._file.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
