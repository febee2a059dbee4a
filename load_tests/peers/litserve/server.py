"""LitServe: an HTTP server and a worker process that batches.

python -m load_tests.peers.litserve.server BUNDLE PRECISION PORT CORES
"""

import os
from collections.abc import Sequence
from typing import Annotated

import litserve
from fastapi import Body, Response

from load_tests.peers.answering import answer, open_predictor, read_arguments, wait_ms, workers_and_threads

MAX_BATCH = 32
FAST_QUEUE = "PEER_FAST_QUEUE" in os.environ  # ZeroMQ instead of a multiprocessing queue
LEAST_WAIT_MS = 1  # with 0 the worker would look for requests without a pause


class Classifier(litserve.LitAPI):
    """Images in, JSON out."""

    def setup(self, device: str) -> None:
        """Load the model."""
        bundle, precision, _, cores = read_arguments()
        self.predictor = open_predictor(bundle, precision, threads=workers_and_threads(cores)[1])

    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        """The body is the image."""
        return request

    def batch(self, inputs: Sequence[bytes]) -> Sequence[bytes]:
        """Decoded with the batch."""
        return inputs

    def predict(self, x: Sequence[bytes]) -> list[bytes]:
        """A batch."""
        return answer(self.predictor, x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """One of each."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """It is JSON already."""
        return Response(output, media_type="application/json")


def main() -> None:
    """Serve until a signal comes."""
    _, _, port, cores = read_arguments()
    workers, _ = workers_and_threads(cores)
    api = Classifier(max_batch_size=MAX_BATCH, batch_timeout=wait_ms(LEAST_WAIT_MS) / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, fast_queue=FAST_QUEUE)
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        generate_client_file=False,
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
