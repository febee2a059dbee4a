"""The service that `server.py` has BentoML run: JSON with an image in base64 in, our answer's JSON out.

A batchable method takes and returns lists, of which a request has one element; the annotation of what it returns makes
that into the body. The body of a request could be the image itself, but for such a parameter BentoML 1.4 makes a JSON
schema at each request.
"""

import base64
import os
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from pydantic import BeforeValidator

from load_tests.peers.answering import answer, open_predictor, read_arguments, workers_and_threads

ARGUMENTS = "PEER_ARGUMENTS"  # variable in which `server.py` passes them on to BentoML's processes
MAX_BATCH = 32
MAX_LATENCY_MS = 10_000  # what it thinks will take longer it refuses

Answers = Annotated[bytes, BeforeValidator(lambda bodies: bodies[0]), ContentType("application/json")]


@bentoml.service(
    workers=workers_and_threads(cores=1)[0],
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Classifier:
    """A predictor."""

    def __init__(self) -> None:
        given = read_arguments(os.environ[ARGUMENTS].split(os.pathsep))
        self.predictor = open_predictor(given.bundle, given.precision, workers_and_threads(given.cores)[1])

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=MAX_LATENCY_MS)
    def classify(self, images: list[str]) -> Answers:
        """Answer the images of a batch by one call of the graph."""
        return answer(self.predictor, [base64.b64decode(image) for image in images])  # type: ignore[return-value]
