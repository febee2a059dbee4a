"""A worker process: TorchServe's own, started without torch.

    python -m serving.torchserve.patches.worker ts/model_service_worker.py --sock-type unix …

TorchServe's worker imports torch only to tell whether an answer is a tensor, which ours never are. That import takes
two seconds of a core, in which the place of a killed worker stays empty. So it is put off until something looks into
torch: the TorchScript runtime does, ONNX Runtime does not.

And it receives what TorchServe sends in as few pieces as it comes, a large body into one buffer of its length.
"""

import importlib
import runpy
import sys
from socket import socket
from types import ModuleType
from typing import Any

DEFERRED = "torch"
AHEAD_BYTES = 64 * 1024


class Deferred(ModuleType):
    """Stands for a module that is imported at the first look into it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


class Receiver:
    """Reads a connection so many bytes at a time, as TorchServe's worker does: a dozen times a request.

    What has come is received at once, and handed out from here. The rest of what is longer goes straight to its place.
    """

    def __init__(self) -> None:
        self._buffer = bytearray(AHEAD_BYTES)
        self._start = self._end = 0  # of what has come and was not handed out

    def __call__(self, connection: socket, length: int) -> bytearray:
        """So many bytes; the worker ends where the server does."""
        if length > self._end - self._start:
            return self._receive(connection, length)
        self._start += length
        return self._buffer[self._start - length : self._start]

    def _receive(self, connection: socket, length: int) -> bytearray:
        wanted = bytearray(length)
        rest = memoryview(wanted)
        while rest:
            if len(rest) > AHEAD_BYTES and self._start == self._end:
                rest = rest[_received(connection, rest) :]
                continue
            if self._start == self._end:
                self._start, self._end = 0, _received(connection, memoryview(self._buffer))
            count = min(len(rest), self._end - self._start)
            rest[:count] = self._buffer[self._start : self._start + count]
            self._start, rest = self._start + count, rest[count:]
        return wanted


def _received(connection: socket, buffer: memoryview) -> int:
    """Receive what has come into a buffer; how many bytes that is."""
    return connection.recv_into(buffer) or sys.exit(0)


def main() -> None:
    """Run the script that the first argument names, with the others, as `python` would."""
    sys.modules[DEFERRED] = Deferred(DEFERRED)
    importlib.import_module("ts.model_service_worker")
    importlib.import_module("ts.protocol.otf_message_handler")._retrieve_buffer = Receiver()  # type: ignore[attr-defined]
    del sys.modules[DEFERRED]  # whoever imports it from here on gets the real one
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
