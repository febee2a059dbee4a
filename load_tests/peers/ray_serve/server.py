"""Ray Serve on a cluster of this machine alone.

    python -m load_tests.peers.ray_serve.server BUNDLE PRECISION PORT CORES
"""

import asyncio
import os
import signal
import threading
import time

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

from load_tests.peers.answering import Arguments, answer, open_predictor, read_arguments

X_REPLICAS = int(os.environ.get("X_REPLICAS", 1))
X_THREADS = int(os.environ.get("X_THREADS", 2))


@serve.deployment(num_replicas=X_REPLICAS, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Classifier:
    """A predictor."""

    def __init__(self, given: Arguments) -> None:
        self.predictor = open_predictor(given.bundle, given.precision, X_THREADS)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=float(os.environ.get("X_DELAY", 0.0)), max_concurrent_batches=int(os.environ.get("X_BATCHES", 1)))
    async def classify(self, images: list[bytes]) -> list[bytes]:
        """Answer the images of a batch by one call of the graph."""
        if os.environ.get("X_THREADED"):
            return await asyncio.to_thread(answer, self.predictor, images)
        return answer(self.predictor, images)

    async def __call__(self, request: Request) -> Response:
        """Answer one image."""
        return Response(await self.classify(await request.body()), media_type="application/json")


def main() -> None:
    """Serve until told to stop."""
    given = read_arguments()
    ray.init(num_cpus=given.cores, include_dashboard=False, log_to_driver=True)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port}, logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"))
    serve.run(Classifier.options(logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING")).bind(given), route_prefix="/")
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    ray.shutdown()


if __name__ == "__main__":
    main()
