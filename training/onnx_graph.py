"""A module as an ONNX file: one that takes `images`, uint8 (N, channels, H, W) with N free."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OPSET = 20


def write_onnx(graph: nn.Module, example: Tensor, output_names: Sequence[str], file: Path) -> None:
    """Write what a module computes.

    Args:
        graph: in evaluation mode, on the CPU.
        example: images, two at least.
        output_names: of what it answers, in order.
        file: to write, weights included.

    Raises:
        RuntimeError: if torch exports no program.
    """
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            graph,
            (example,),
            input_names=["images"],
            output_names=list(output_names),
            dynamic_shapes=({0: torch.export.Dim("images_count")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export must return a program, got None")
    onnx.save(_without_traces(program.model_proto), file)


def _without_traces(model: Any) -> Any:
    """An ONNX model without the exporter's notes, among them the paths of the source files on this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model
