"""A handler as TorchServe's examples write one: a BaseHandler of three steps, which returns dictionaries.

The archive's `model-config.yaml` names the bundle, its precision and the threads of an inference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ts.torch_handler.base_handler import BaseHandler

from load_tests.peers.answering import open_predictor
from serving.parameters import DEFAULT_OPTIONS
from serving.runtimes import Outputs


class ImageHandler(BaseHandler):
    """Images in, answers out; TorchServe makes them into JSON."""

    def initialize(self, context: Any) -> None:
        """Load the model."""
        chosen = context.model_yaml_config["handler"]
        self.predictor = open_predictor(chosen["bundle"], chosen["precision"], threads=chosen["threads"])
        self.initialized = True

    def preprocess(self, data: Sequence[Mapping[str, Any]]) -> NDArray[np.uint8]:
        """The images of a batch, decoded."""
        return np.stack([self.predictor.decode(bytes(row.get("data") or row.get("body"))) for row in data])

    def inference(self, data: NDArray[np.uint8], *args: Any, **kwargs: Any) -> Outputs:
        """One call of the graph."""
        return self.predictor.infer(data)

    def postprocess(self, data: Outputs) -> list[dict[str, Any]]:
        """An answer for each image."""
        return self.predictor.encode(data, [DEFAULT_OPTIONS] * len(data["posterior"]))
