"""A finished run to a bundle: one module becomes TorchScript and ONNX, both checked against float64.

    python -m training export runs/digits-mda/demo

The golden inputs are seeded noise and drawn shapes. A bundle whose graphs disagree is never written.
"""

import copy
import json
import platform
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from serving.bundle import GOLDEN, ONNX, TORCHSCRIPT, Bundle, staged, write_manifest
from serving.runtimes import open_runtime
from training.classifier import Classifier, ServedGraph
from training.data import Sources
from training.evaluate import Outputs, measure, run_graph
from training.run import Run
from training.train import LabelledImages, load_images

TOLERANCE = {"posterior": 1e-5, "responsibilities": 1e-4, "log_density": 1e-4, "features": 1e-4}
RELATIVE = ("log_density", "features")  # not bounded by 1: compared relative to their size above 1


class ParityError(RuntimeError):
    """The exported graphs do not compute what the classifier computes."""


def export(run: Run, sources: Sources, target: Path, *, replace: bool = False) -> Bundle:
    """Write the bundle of a finished run to `target`, a folder <name>/<version>.

    The metrics in it are those of the ONNX graph on the test split.

    Raises:
        ParityError: if a graph differs from the eager float64 model; nothing is left behind.
        BundleError: if `target` is there and may not be replaced.
    """
    classifier = run.load_classifier()
    images = load_images(run.recipe, sources)
    with staged(target, replace=replace) as stage:
        write_graphs(classifier, stage)
        manifest_fields = {
            "name": target.parent.name,
            "version": int(target.name),
            **_describe(run, classifier, images),
        }
        _check_parity(stage, manifest_fields)
        write_manifest(stage, metrics=_measure(stage, manifest_fields, images), **manifest_fields)
    return Bundle.load(target)
