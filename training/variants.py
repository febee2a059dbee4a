"""A bundle's variants: its ONNX graph in other precisions, where that costs next to nothing.

int8: the convolutions in 8 bits, the same on every CPU (`int8.py`). float16: all that leads to the features. The head
stays in float32 in both, for a density does not survive less.

Whether one is good enough is judged on the validation split (`variant_costs.py`). A recipe that trains on every image
has none; then it is judged on training images that int8 was not calibrated on. The network has learned from them, and
is surer of them than of others, but the difference between the two graphs was fitted to none of them. The test split
decides nothing.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from serving.bundle import (
    EXAMPLES,
    HELD_OUT,
    MANIFEST,
    PLANE,
    REQUIRED_FILES,
    Bundle,
    Variant,
    VariantPrecision,
    graph_files,
    held_out_file,
    staged,
    write_manifest,
)
from serving.runtimes import Outputs, open_onnx
from training.data import as_served
from training.evaluate import run_graph
from training.held_out import Tables, held_out_of
from training.image_files import in_memory
from training.images import LabelledImages, Streamed
from training.int8 import write_int8
from training.splits import stratified_order
from training.variant_costs import cost_of, require_cheap

CALIBRATION_IMAGES = 1024
CALIBRATION_PIXELS = (
    32 * 224 * 224
)  # at most: large images are fewer, for what every layer makes of all of them is held
JUDGED_IMAGES = 10_000


@dataclass(frozen=True)
class WantedVariants:
    """Variants to add to a bundle that is being made.

    Attributes:
        precisions: of the variants.
        calibration: uint8 (N, channels, H, W), training images of all classes, by which int8 is calibrated.
        judged: the images that decide; none of those.
        judged_split: which these are from.
    """

    precisions: Collection[VariantPrecision]
    calibration: torch.Tensor
    judged: Streamed
    judged_split: Literal["train", "validation"]


def wanted_variants(precisions: Collection[VariantPrecision], images: LabelledImages) -> WantedVariants:
    """Choose the images that variants are made and judged by: a seeded, stratified sample of those of the run."""
    dataset, train, validation = images.dataset, images.splits["train"], images.splits["validation"]
    train = train[stratified_order(dataset.labels[train], seed=0)]
    affordable = max(1, CALIBRATION_PIXELS // (dataset.input.height * dataset.input.width))
    count = min(CALIBRATION_IMAGES, affordable, len(train) // 2)
    judged_split: Literal["train", "validation"] = "validation" if len(validation) else "train"
    judged = validation if len(validation) else train[count:]
    judged = judged[stratified_order(dataset.labels[judged], seed=0)[:JUDGED_IMAGES]]
    labelled = Streamed(dataset.images[judged], dataset.labels[judged])
    return WantedVariants(precisions, in_memory(dataset.images[train[:count]]), labelled, judged_split)


def add_variants(
    bundle: Bundle, wanted: WantedVariants, test: Streamed, exact: Outputs, tables: Tables | None = None
) -> dict[VariantPrecision, Variant]:
    """Write variants of a bundle that is being made, and measure them on the CPU.

    Args:
        bundle: its folder has the float32 graph.
        wanted: which, and the images that they are made and judged by.
        test: the test split.
        exact: what the float32 graph answers for it.
        tables: what makes a variant's table of held-out images, if there are any.

    Raises:
        VariantError: if one of them costs too much.
    """
    if not wanted.precisions:
        return {}
    plain = open_onnx(bundle.onnx(), bundle.manifest.outputs)
    spec = bundle.manifest.input
    exact_judged = run_graph(plain, wanted.judged.images, spec)
    variants = {}
    for precision in wanted.precisions:
        write_variant(bundle, precision, wanted.calibration)
        graph = open_onnx(bundle.path / graph_files(precision)[0], bundle.manifest.outputs)
        quick = run_graph(graph, wanted.judged.images, spec)
        judged = cost_of(wanted.judged_split, exact_judged, quick, wanted.judged.labels)
        require_cheap(precision, judged)
        reported = cost_of("test", exact, run_graph(graph, test.images, spec), test.labels)
        variants[precision] = Variant(
            accuracy=reported.accuracy[1], agreement=reported.agreement, judged=judged, test=reported
        )
        if tables is not None:
            answers = run_graph(graph, tables.images.part.images, spec)
            tables.table(answers).write(bundle.path / held_out_file(precision))
    return variants


def write_variant(bundle: Bundle, precision: VariantPrecision, calibration: torch.Tensor) -> None:
    """Write the graph of a variant and its golden answers into the folder of a bundle."""
    target, golden_file = (bundle.path / name for name in graph_files(precision))
    if precision == "float16":
        _write_float16(bundle.onnx(), target)
    else:
        write_int8(bundle.onnx(), target, as_served(calibration, bundle.manifest.input))
    golden, _ = bundle.read_golden()
    answers: dict[str, Any] = open_onnx(target, bundle.manifest.outputs)(golden)
    np.savez_compressed(golden_file, **answers)


def renew_variants(folder: Path, precisions: Collection[VariantPrecision], images: LabelledImages) -> Bundle:
    """Make the variants of a finished bundle anew; the rest of its folder stays as it is.

    Args:
        folder: of the bundle.
        precisions: variants to add to those that it has.
        images: those that it was trained and measured on, with their splits.

    Raises:
        VariantError: if one of them costs too much; the bundle is left as it was.
    """
    old = Bundle.load(folder)
    held_out = held_out_of(old, images)
    wanted = wanted_variants(sorted({*old.manifest.variants, *precisions}), images)
    test = images.streamed("test")
    fields = old.manifest.model_dump(exclude={"sha256", "variants"})
    made_anew = {MANIFEST, *old.manifest.files}.difference(REQUIRED_FILES, {EXAMPLES, HELD_OUT, PLANE})
    with staged(folder, replace=True) as stage:
        shutil.copytree(folder, stage, ignore=shutil.ignore_patterns(*made_anew), dirs_exist_ok=True)
        write_manifest(stage, **fields)
        plain = Bundle.load(stage)
        graph, spec = open_onnx(plain.onnx(), plain.manifest.outputs), plain.manifest.input
        tables = None if held_out is None else Tables.of(held_out, graph, spec)
        variants = add_variants(plain, wanted, test, run_graph(graph, test.images, spec), tables)
        (stage / MANIFEST).unlink()
        write_manifest(stage, variants=variants, **fields)
    return Bundle.load(folder)


def _write_float16(source: Path, target: Path) -> None:
    """All before the pooled features in float16.

    The graph is cut there, for the converter would round what passes among nodes that it is told to leave alone. What
    else the typicality takes from before them passes the cut in float32.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    outputs, passing = [output.name for output in model.graph.output], _passing(model)
    parts = onnx.utils.Extractor(model)
    trunk = parts.extract_model(["images"], passing)
    head = parts.extract_model(passing, [name for name in outputs if name not in passing])
    trunk = convert_float_to_float16(trunk, keep_io_types=True)
    for part in (trunk, head):
        part.graph.ClearField("value_info")  # both name the pooled features there
    merged = onnx.compose.merge_models(trunk, head, [(name, name) for name in passing], outputs=outputs)
    onnx.save(merged, target)


def _passing(model: Any) -> list[str]:
    """The names of the tensors that what leads to the pooled features makes and that others take: them first."""
    pooled = _pooled_features(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    made, waiting = set(), [pooled]
    while waiting:
        name = waiting.pop()
        if name in makers and name not in made:
            made.add(name)
            waiting += makers[name].input
    taken = {name for node in model.graph.node if made.isdisjoint(node.output) for name in node.input}
    return [pooled, *sorted(made & taken - {pooled})]


def _pooled_features(model: Any) -> str:
    """The name of the tensor that is projected to features; the features' own where there is no projection."""
    (last,) = (node for node in model.graph.node if "features" in node.output)
    name: str = last.input[0] if last.op_type == "Gemm" else "features"
    return name
