"""Triton's Python model: encoded images in, our answers' JSON out; `server.py` puts it into a model repository.

Triton's own interpreter runs it, which takes no PYTHONPATH: where the project is says the model's configuration.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One instance: a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load and warm up the predictor."""
        given = json.loads(args["model_config"])["parameters"]
        parameters = {name: value["string_value"] for name, value in given.items()}
        sys.path.insert(0, parameters["project"])
        from load_tests.peers import answering

        self.answering = answering
        self.predictor = answering.open_predictor(
            Path(parameters["bundle"]), parameters["precision"], int(parameters["threads"])
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of a batch by one call of the graph."""
        images = [triton.get_input_tensor_by_name(one, "image").as_numpy().item() for one in requests]
        bodies = self.answering.answer(self.predictor, images)
        tensors = [triton.Tensor("answer", np.array([[body]], dtype=np.object_)) for body in bodies]
        return [triton.InferenceResponse([tensor]) for tensor in tensors]
