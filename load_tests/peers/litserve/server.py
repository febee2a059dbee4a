"""LitServe: an HTTP server and a worker process that batches.

python -m load_tests.peers.litserve.server BUNDLE PRECISION PORT CORES
"""

import os
from collections.abc import Sequence
from typing import Annotated

import litserve
from fastapi import Body, Response

from load_tests.peers.answering import answer, open_predictor, read_arguments

MAX_BATCH = 32
WAIT_S = float(os.environ.get("W", "0.001"))


class Classifier(litserve.LitAPI):
    """Images in, JSON out."""

    def setup(self, device: str) -> None:
        """Load the model."""
        bundle, precision, _, cores = read_arguments()
        self.predictor = open_predictor(bundle, precision, threads=cores)

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
    api = Classifier(max_batch_size=MAX_BATCH, batch_timeout=WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=bool(os.environ.get("FQ")))
    server.run(
        host="127.0.0.1",
        port=read_arguments().port,
        num_api_servers=1,
        generate_client_file=False,
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
