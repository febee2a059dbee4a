"""The service that `server.py` has BentoML run: the request's body is an image, the answer's our JSON.

A batchable method takes and returns lists, one of them a request; its annotations make the body into such a list and
its element into the body.
"""

import os
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from pydantic import BeforeValidator, WithJsonSchema

from load_tests.peers.answering import answer, open_predictor, read_arguments

ARGUMENTS = "PEER_ARGUMENTS"  # variable in which `server.py` passes them on to BentoML's processes
MAX_BATCH = 32
MAX_LATENCY_MS = 10_000  # what it thinks will take longer it refuses

Images = Annotated[list[bytes], BeforeValidator(lambda body: [body]), WithJsonSchema({"type": "file"})]
Answers = Annotated[bytes, BeforeValidator(lambda bodies: bodies[0]), ContentType("application/json")]


@bentoml.service(
    workers=1,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Classifier:
    """A predictor."""

    def __init__(self) -> None:
        bundle, precision, _, cores = read_arguments(os.environ[ARGUMENTS].split(os.pathsep))
        self.predictor = open_predictor(bundle, precision, cores)

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=MAX_LATENCY_MS)
    def classify(self, images: Images, /) -> Answers:
        """Answer the images of a batch by one call of the graph."""
        return answer(self.predictor, images)  # type: ignore[return-value]
