"""The deployment that `server.py` runs: the request's body is an image, the answer's our JSON."""

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from load_tests.peers.answering import Arguments, answer, open_predictor, wait_ms, workers_and_threads

MAX_BATCH = 32


@serve.deployment
class Classifier:
    """A predictor."""

    def __init__(self, given: Arguments) -> None:
        self.predictor = open_predictor(given.bundle, given.precision, workers_and_threads(given.cores)[1])

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=wait_ms(0) / 1000)
    async def classify(self, images: list[bytes]) -> list[bytes]:
        """Answer the images of a batch by one call of the graph; what comes meanwhile is the next batch."""
        return answer(self.predictor, images)

    async def __call__(self, request: Request) -> Response:
        """Answer one image."""
        return Response(await self.classify(await request.body()), media_type="application/json")
