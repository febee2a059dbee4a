"""A bundle's variants: its ONNX graph in other precisions, where that costs next to nothing.

int8: the convolutions in 8 bits, the same on every CPU (`int8.py`). float16: all that leads to the features. The head
stays in float32 in both, for a density does not survive less.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.bundle import (
    MANIFEST,
    REQUIRED_FILES,
    Bundle,
    Variant,
    VariantPrecision,
    graph_files,
    staged,
    write_manifest,
)
from serving.runtimes import Outputs, open_onnx
from training.data import as_served
from training.evaluate import run_graph
from training.images import Labelled
from training.int8 import write_int8

CALIBRATION_IMAGES = 1024
MOST_ACCURACY_LOST = 0.002
LEAST_AGREEMENT = 0.99


class VariantError(ValueError):
    """A graph of another precision answers too differently."""


def add_variant(
    bundle: Bundle, precision: VariantPrecision, test: Labelled, exact: Outputs, calibration: Labelled | None = None
) -> Variant:
    """Write a variant of a bundle that is being made, and measure it on the CPU.

    Args:
        bundle: its folder has the float32 graph.
        precision: of the variant.
        test: the test split.
        exact: what the float32 graph answers for it.
        calibration: of the training split; int8 needs a few hundred of its images.

    Raises:
        VariantError: if it loses too much.
    """
    spec = bundle.manifest.input
    target, golden_file = (bundle.path / name for name in graph_files(precision))
    if precision == "float16":
        _write_float16(bundle.onnx(), target)
    elif calibration is None:
        raise ValueError("int8 must have training images to calibrate it, got none")
    else:
        write_int8(bundle.onnx(), target, as_served(_sample(calibration), spec))
    graph = open_onnx(target, bundle.manifest.outputs)
    golden, _ = bundle.read_golden()
    answers: dict[str, Any] = graph(golden)
    np.savez(golden_file, images=golden, **answers)
    quick = run_graph(graph, test.images, spec)
    labels = test.labels.numpy()
    before, after = (float((outputs["posterior"].argmax(1) == labels).mean()) for outputs in (exact, quick))
    agreement = assignments_that_agree(exact, quick)
    if before - after > MOST_ACCURACY_LOST:
        raise VariantError(
            f"accuracy in {precision} must be within {MOST_ACCURACY_LOST:.1%} of {before:.2%}, got {after:.2%}: "
            f"export without --{precision}"
        )
    if agreement is not None and agreement < LEAST_AGREEMENT:
        raise VariantError(
            f"assignments in {precision} must agree for {LEAST_AGREEMENT:.0%} of images, got {agreement:.2%}: "
            f"export without --{precision}"
        )
    return Variant(accuracy=round(after, 6), agreement=None if agreement is None else round(agreement, 6))


def renew_variants(
    folder: Path, precisions: Collection[VariantPrecision], test: Labelled, calibration: Labelled
) -> Bundle:
    """Make the variants of a finished bundle anew; the rest of its folder stays as it is.

    Args:
        folder: of the bundle.
        precisions: variants to add to those that it has.
        test: the test split.
        calibration: training images.

    Raises:
        VariantError: if one of them loses too much; the bundle is left as it was.
    """
    old = Bundle.load(folder)
    wanted = sorted({*old.manifest.variants, *precisions})
    fields = old.manifest.model_dump(exclude={"sha256", "variants"})
    made_anew = {MANIFEST, *old.manifest.files}.difference(REQUIRED_FILES)
    with staged(folder, replace=True) as stage:
        shutil.copytree(folder, stage, ignore=shutil.ignore_patterns(*made_anew), dirs_exist_ok=True)
        write_manifest(stage, **fields)
        plain = Bundle.load(stage)
        exact = run_graph(open_onnx(plain.onnx(), plain.manifest.outputs), test.images, plain.manifest.input)
        variants = {precision: add_variant(plain, precision, test, exact, calibration) for precision in wanted}
        (stage / MANIFEST).unlink()
        write_manifest(stage, variants=variants, **fields)
    return Bundle.load(folder)


def assignments_that_agree(first: Outputs, second: Outputs) -> float | None:
    """Share of images that two graphs give to the same component of the class that the first one finds likeliest.

    None for a head without components.
    """
    if "responsibilities" not in first:
        return None
    labels = first["posterior"].argmax(1)
    rows = np.arange(len(labels))
    chosen = [outputs["responsibilities"][rows, labels].argmax(1) for outputs in (first, second)]
    return float((chosen[0] == chosen[1]).mean())


def _write_float16(source: Path, target: Path) -> None:
    """All before the features in float16.

    The graph is cut there, for the converter would round what passes among nodes that it is told to leave alone.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    outputs = [output.name for output in model.graph.output]
    parts = onnx.utils.Extractor(model)
    encoder = parts.extract_model(["images"], ["features"])
    head = parts.extract_model(["features"], [name for name in outputs if name != "features"])
    encoder = convert_float_to_float16(encoder, keep_io_types=True)
    for part in (encoder, head):
        part.graph.ClearField("value_info")  # both name the features there
    onnx.save(onnx.compose.merge_models(encoder, head, [("features", "features")], outputs=outputs), target)


def _sample(images: Labelled) -> torch.Tensor:
    """Training images of all classes in their shares, for a folder's lie class by class."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.images[order[:CALIBRATION_IMAGES]]
