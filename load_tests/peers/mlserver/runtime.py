"""MLServer's custom runtime: base64 of images in, our answers' JSON out."""

import base64

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from load_tests.peers.answering import answer, open_predictor, read_arguments, workers_and_threads


class Classifier(MLModel):
    """A predictor."""

    async def load(self) -> bool:
        """Load and warm up the predictor."""
        given = read_arguments(self.settings.parameters.extra["arguments"])
        self.predictor = open_predictor(given.bundle, given.precision, workers_and_threads(given.cores)[1])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer the images of a batch by one call of the graph."""
        images = [base64.b64decode(text) for text in payload.inputs[0].data.root]
        data = [body.decode() for body in answer(self.predictor, images)]
        output = ResponseOutput(name="answers", shape=[len(data), 1], datatype="BYTES", data=data)
        return InferenceResponse(model_name=self.name, outputs=[output])
