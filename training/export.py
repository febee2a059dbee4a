"""A finished run to a bundle: one module becomes TorchScript and ONNX, both checked against float64.

    python -m training export runs/digits-mda/demo

The golden inputs are seeded noise and drawn shapes. Two things are checked against what every server demands of them
before it is ready (`serving.predictor.TOLERANCES`). First, from the classifier alone and so with the same outcome on
every machine: how far float32 may move its answers (training/condition.py). Then what the graphs answer, which must be
within half of that: more than any machine's rounding of a classifier that passed the first, less than a wrong graph.
"""

import copy
import io
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from serving.bundle import (
    EXAMPLES,
    GOLDEN,
    HELD_OUT,
    MANIFEST,
    ONNX,
    PLANE,
    TORCHSCRIPT,
    Bundle,
    InputSpec,
    VariantPrecision,
    staged,
    write_manifest,
)
from serving.held_out import HeldOut
from serving.predictor import TOLERANCES
from serving.runtimes import Outputs, onnxruntime, open_onnx, open_runtime
from training.classifier import Architecture, Classifier, ServedGraph
from training.component_names import ComponentNames
from training.condition import condition
from training.data import Sources
from training.evaluate import measure, run_graph
from training.examples import ComponentExamples, WhichExamples, find_examples, write_examples
from training.held_out import HeldOutImages, Tables, compared, held_out_images
from training.images import LabelledImages, Streamed, images_of
from training.onnx_graph import write_onnx
from training.plane import PlaneImages, plane_images, write_plane
from training.run import Run
from training.variants import WantedVariants, add_variants, wanted_variants

FINEST_GRAINS = 64  # along a side of a golden image: noise is hard to compress
OF_TOLERANCE = 0.5  # how much of what servers allow a graph may be off by


class ParityError(RuntimeError):
    """Float32 cannot hold a classifier, or an exported graph does not compute what the classifier computes."""


def export(
    run: Run,
    sources: Sources,
    target: Path,
    *,
    replace: bool = False,
    variants: Collection[VariantPrecision] = (),
    names: ComponentNames | None = None,
    examples: WhichExamples | None = None,
) -> Bundle:
    """Write the bundle of a finished run to `target`, a folder <name>/<version>.

    The metrics in it are those of its own ONNX graph on the test split.

    Args:
        run: what to export.
        sources: where its images are.
        target: the bundle's folder.
        replace: whether a bundle that is there may be replaced.
        variants: graphs of other precisions to add.
        names: what people call its components.
        examples: which of them to add, if any; they show training images.

    Raises:
        ParityError: if float32 cannot hold the classifier, or a graph differs from it; nothing is left behind.
        VariantError: if one of them costs too much; nothing is left behind.
        RunError: if the run is not finished or the images are not those that it was trained on.
        BundleError: if `target` is there and may not be replaced.
        ValueError: if examples are wanted of a head without densities, or take too much room.
    """
    classifier = run.load_classifier()
    images = images_of(run, sources)
    held_out = None if classifier.typicality is None else held_out_images(images, run.load_judged())
    return write_bundle(
        target,
        classifier,
        images.streamed("test"),
        held_out=held_out,
        plane=plane_images(images, held_out),
        variants=wanted_variants(variants, images) if variants else None,
        examples=find_examples(classifier, images, examples, torch.device("cpu")) if examples else None,
        replace=replace,
        priors=_shares(images),
        labels=images.dataset.classes,
        input=images.dataset.input,
        recipe=run.recipe.model_dump(mode="json", exclude_none=True),
        dataset=run.description()["dataset"],
        backbone=run.description().get("backbone"),
        component_names=names or {},
    )


def write_bundle(
    target: Path,
    classifier: Classifier,
    test: Streamed,
    *,
    held_out: HeldOutImages | None = None,
    plane: PlaneImages | None = None,
    variants: WantedVariants | None = None,
    examples: list[ComponentExamples] | None = None,
    replace: bool = False,
    **fields: Any,
) -> Bundle:
    """Export `classifier` and measure it on `test`.

    Args:
        target: the bundle's folder.
        classifier: what to export.
        test: the images that the metrics are measured on.
        held_out: the images that answers are compared with.
        plane: the images that its feature plane is made of, if it shall have one.
        variants: graphs of other precisions to add.
        examples: what there is to see of the components, if anything.
        replace: whether a bundle that is there may be replaced.
        fields: the manifest's labels, input, recipe, dataset, backbone, priors and component names.
    """
    names, spec = ServedGraph(classifier).output_names, InputSpec.model_validate(fields["input"])
    fields |= {
        "name": target.parent.name,
        "version": target.name,
        "head": _head_spec(classifier.architecture),
        "outputs": names,
        "calibration": _calibration(classifier),
        "versions": _versions(),
    }
    with staged(target, replace=replace) as stage:
        write_graphs(classifier, stage)
        fields["examples"] = None if examples is None else write_examples(examples, stage / EXAMPLES)
        tables = None
        if held_out is not None:
            tables = Tables.of(held_out, open_onnx(stage / ONNX, names), spec)
            tables.table(tables.plain).write(stage / HELD_OUT)
            fields["held_out"] = {"images": len(held_out.part), "by": held_out.by}
        write_manifest(stage, metrics={}, **fields)
        unmeasured = Bundle.load(stage)
        check_parity(unmeasured)
        graph = open_runtime(unmeasured, "onnx")
        outputs = run_graph(graph, test.images, spec)
        metrics = {"split": "test", **measure(outputs, test.labels)}
        if (table := unmeasured.held_out()) is not None:
            metrics["held_out"] = compared(outputs, test.labels.numpy(), HeldOut.read(table))
        fields["variants"] = {} if variants is None else add_variants(unmeasured, variants, test, outputs, tables)
        fields["plane"] = None if plane is None else write_plane(graph, plane, spec, stage / PLANE)
        (stage / MANIFEST).unlink()
        write_manifest(stage, metrics=metrics, **fields)
    return Bundle.load(target)


def write_graphs(classifier: Classifier, folder: Path) -> None:
    """Write model.pt, model.onnx and golden.npz of a classifier.

    Raises:
        ParityError: if float32 cannot hold it.
    """
    classifier = copy.deepcopy(classifier).cpu().eval()
    golden = golden_images(classifier.architecture.image_shape)
    answers: dict[str, Any] = require_condition(classifier, golden)
    np.savez_compressed(folder / GOLDEN, images=golden.numpy(), **answers)
    graph = ServedGraph(classifier).eval()
    _write_torchscript(graph, golden, folder / TORCHSCRIPT)
    write_onnx(graph, golden, graph.output_names, folder / ONNX)


def require_condition(classifier: Classifier, images: torch.Tensor) -> Outputs:
    """A classifier's answers in float64, if float32 is sure to be near enough to them.

    Raises:
        ParityError: naming the output, how far float32 may move it, and the tolerance of servers.
    """
    classifier = copy.deepcopy(classifier).double().eval()
    graph = ServedGraph(classifier)
    with torch.inference_mode():
        answers: Outputs = {name: out.numpy() for name, out in zip(graph.output_names, graph(images), strict=True)}
    bounds = condition(classifier, images)
    for name, answer in answers.items():
        bound, allowed = _worst(name, bounds[name].numpy(), answer)
        if not bound <= allowed:  # written so that NaN fails
            raise ParityError(
                f"{name} in float32 must be within {allowed:.2g} of float64, got up to {bound:.2g} apart: "
                "float32 cannot hold so steep a head; try a larger refit.ridge"
            )
    return answers


def check_parity(bundle: Bundle) -> None:
    """Compare both graphs with the golden outputs, in one batch and image by image.

    Raises:
        ParityError: naming the graph, the output, the difference and the limit.
    """
    images, expected = bundle.read_golden()
    for kind in ("torchscript", "onnx"):
        runtime = open_runtime(bundle, kind, "cpu", None)
        single = [runtime(images[i : i + 1]) for i in range(len(images))]
        for outputs in (runtime(images), {name: np.concatenate([s[name] for s in single]) for name in expected}):
            _require_equal(kind, outputs, expected)


def golden_images(image_shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Two images of noise, of coarser grains in large ones, and six drawn shapes, uint8 (8, channels, H, W)."""
    channels, height, width = image_shape
    generator = np.random.default_rng(seed)
    grain = max(1, max(height, width) // FINEST_GRAINS)
    coarse = (-(-height // grain), -(-width // grain), channels)
    noise = [generator.integers(0, 256, coarse, dtype=np.uint8) for _ in range(2)]
    images = [one.repeat(grain, 0).repeat(grain, 1)[:height, :width] for one in noise]
    for draw in ("ellipse", "rectangle", "line") * 2:
        canvas = Image.new("RGB", (width, height))
        corners = [tuple(sorted(generator.integers(0, side, 2).tolist())) for side in (width, height)]
        (left, right), (top, bottom) = corners
        pen = ImageDraw.Draw(canvas)
        colour = tuple(generator.integers(128, 256, 3).tolist())
        getattr(pen, draw)((left, top, right, bottom), fill=colour)
        images.append(np.asarray(canvas.convert("RGB" if channels == 3 else "L")).reshape(height, width, channels))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _require_equal(kind: str, outputs: Outputs, expected: Outputs) -> None:
    for name, reference in expected.items():
        difference, allowed = _worst(name, np.abs(outputs[name] - reference), reference)
        if not difference <= OF_TOLERANCE * allowed:  # written so that NaN fails
            raise ParityError(
                f"{name} of the {kind} graph must be within {OF_TOLERANCE * allowed:.2g} of float64, got "
                f"{difference:.2g} apart: the graph computes something else than the classifier"
            )


def _worst(name: str, difference: NDArray[Any], reference: NDArray[Any]) -> tuple[float, float]:
    """The difference that is largest for what servers allow where it is, and that allowance."""
    absolute, relative = TOLERANCES["float32"][name]
    allowed = absolute + relative * np.abs(reference)
    at = np.unravel_index(np.argmax(difference / allowed), difference.shape)  # the first NaN, if any
    return float(difference[at]), float(allowed[at])


def _write_torchscript(graph: ServedGraph, example: torch.Tensor, file: Path) -> None:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is (deprecated|not supported)")
        # timm's checks of the image's size, which the trace need not repeat
        warnings.filterwarnings(
            "ignore", "Converting a tensor to a Python (boolean|number)", module=r"torch(\._tensor)?$"
        )
        traced = torch.jit.freeze(torch.jit.trace(graph, example))
        whole = io.BytesIO()
        torch.jit.save(traced, whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(file, "w") as stripped:
        for entry in archive.infolist():
            if not entry.filename.endswith(".debug_pkl"):  # the paths of the source files on this machine
                stripped.writestr(entry, archive.read(entry))


def _head_spec(architecture: Architecture) -> dict[str, Any]:
    head = architecture.head
    return {
        "kind": head.kind,
        "classes": architecture.classes,
        "dim": architecture.dim,
        "components": head.components,
    }


def _calibration(classifier: Classifier) -> dict[str, Any]:
    """The temperature of the posterior and how it was come by; under `components` the same of responsibilities."""
    of_components = classifier.component_calibration
    known = {"components": {"temperature": classifier.component_temperature, **of_components}} if of_components else {}
    return {"temperature": classifier.temperature, **classifier.calibration, **known}


def _shares(images: LabelledImages) -> tuple[float, ...]:
    """Each class's share of the training images."""
    counts = images.dataset.labels[images.splits["train"]].bincount(minlength=len(images.dataset.classes)).double()
    return tuple((counts / counts.sum()).tolist())


def _versions() -> dict[str, str]:
    import onnx

    return {"torch": str(torch.__version__), "onnx": onnx.__version__, "onnxruntime": onnxruntime().__version__}
