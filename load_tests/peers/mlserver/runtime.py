"""MLServer's custom runtime: base64 of images in, our answers' JSON out."""

import asyncio
import base64
import os
from pathlib import Path

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from load_tests.peers.answering import answer, open_predictor, read_arguments


class Classifier(MLModel):
    """A predictor."""

    async def load(self) -> bool:
        """Load and warm up the predictor."""
        given = read_arguments(self.settings.parameters.extra["arguments"])
        self.predictor = open_predictor(given.bundle, given.precision, int(os.environ.get("X_THREADS", 2)))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer the images of a batch by one call of the graph."""
        images = [base64.b64decode(text) for text in payload.inputs[0].data.root]
        if os.environ.get("X_THREADED"):
            bodies = await asyncio.to_thread(answer, self.predictor, images)
        else:
            bodies = answer(self.predictor, images)
        data = [body.decode() for body in bodies]
        output = ResponseOutput(name="answers", shape=[len(data), 1], datatype="BYTES", data=data)
        return InferenceResponse(model_name=self.name, outputs=[output])
