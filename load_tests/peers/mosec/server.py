"""mosec: a front in Rust that batches, and worker processes in Python.

python -m load_tests.peers.mosec.server BUNDLE PRECISION PORT CORES
"""

import os

from mosec import Server, Worker

from load_tests.peers.answering import answer, open_predictor, read_arguments, wait_ms, workers_and_threads

MAX_BATCH = 32
LEAST_WAIT_MS = 1  # 0 means mosec's default of 10


class Classifier(Worker):
    """Images in, JSON out, both as bytes."""

    def __init__(self) -> None:
        super().__init__()
        bundle, precision, _, cores = read_arguments()
        self.predictor = open_predictor(bundle, precision, threads=workers_and_threads(cores)[1])

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
    _, _, port, cores = read_arguments()
    os.environ["MOSEC_PORT"] = str(port)
    os.environ["MOSEC_ADDRESS"] = "127.0.0.1"
    os.environ["MOSEC_LOG_LEVEL"] = "error"
    server = Server()
    workers, _ = workers_and_threads(cores)
    server.append_worker(Classifier, num=workers, max_batch_size=MAX_BATCH, max_wait_time=wait_ms(LEAST_WAIT_MS))
    server.run()


if __name__ == "__main__":
    main()
