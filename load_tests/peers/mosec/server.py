"""mosec: a front in Rust that batches, and worker processes in Python.

python -m load_tests.peers.mosec.server BUNDLE PRECISION PORT CORES
"""

import os

from mosec import Server, Worker

from load_tests.peers.answering import answer, open_predictor, read_arguments

MAX_BATCH = 32


class Classifier(Worker):
    """Images in, JSON out, both as bytes."""

    def __init__(self) -> None:
        super().__init__()
        bundle, precision, _, cores = read_arguments()
        self.predictor = open_predictor(bundle, precision, threads=cores)

    def deserialize(self, data: bytes) -> bytes:
        """The body is the image."""
        return bytes(data)

    def forward(self, data: list[bytes]) -> list[bytes]:
        """A batch."""
        return answer(self.predictor, data)

    def serialize(self, data: bytes) -> bytes:
        """It is JSON already."""
        return data


def main() -> None:
    """Serve until a signal comes."""
    os.environ["MOSEC_PORT"] = str(read_arguments().port)
    os.environ["MOSEC_ADDRESS"] = "127.0.0.1"
    os.environ["MOSEC_WAIT"] = os.environ.get("W", "0")
    os.environ["MOSEC_LOG_LEVEL"] = "error"
    server = Server()
    server.append_worker(Classifier, max_batch_size=MAX_BATCH)
    server.run()


if __name__ == "__main__":
    main()
