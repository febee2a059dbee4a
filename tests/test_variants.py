"""Variants in float16 and int8: what they are worth, when they are refused, and how they are served."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from serving.bundle import Bundle, VariantPrecision
from serving.errors import BundleError
from serving.predictor import Predictor
from serving.settings import WorkerSettings
from serving.torchserve.archive import package
from training import variants
from training.data import Sources
from training.export import export
from training.images import Labelled, images_of
from training.int8 import safe_scales
from training.recipe import parse_recipe
from training.run import Run
from training.train import train
from training.variants import VariantError, add_variant, assignments_that_agree, renew_variants

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = [ROOT / "model_store" / name / "1" for name in ("cifar100-lda-best", "fashion-mnist-mda-best", "mnist-mda")]
VARIANTS: tuple[VariantPrecision, ...] = ("float16", "int8")
RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "test": 0.6},
    "encoder": {"kind": "six-conv", "dim": 4, "width": 32},
    "head": {"kind": "lda"},
    "loss": {"kind": "cross-entropy"},
    "fit": {"epochs": 6, "batch_size": 64, "lr": 3e-3, "precision": "float32"},
    "refit": {"head": "mda", "components": 2, "features": "pooled", "dim": 8, "covariance": "diagonal"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.create("digits-mda", parse_recipe(RECIPE), "one", tmp_path_factory.mktemp("runs"))
    train(run, Sources(), torch.device("cpu"))
    return run


@pytest.fixture(scope="module")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(run, Sources(), tmp_path_factory.mktemp("store") / "digits" / "1", variants=VARIANTS)


def test_only_convolutions_are_in_8_bits(bundle: Bundle) -> None:
    nodes = onnx.load(bundle.onnx("int8")).graph.node
    made_by = {output: node.op_type for node in nodes for output in node.output}
    read_by = {name: node.op_type for node in nodes for name in node.input}

    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert len(convolutions) == 6
    assert all(made_by[name] == "DequantizeLinear" for node in convolutions for name in node.input[:2])
    assert all(read_by[node.output[0]] == "QuantizeLinear" for node in convolutions)  # where its ReLU was
    products = [node for node in nodes if node.op_type in ("Gemm", "MatMul")]
    assert products
    assert not any(made_by.get(name) == "DequantizeLinear" for node in products for name in node.input[1:])


def int8_weights(graph: Path) -> list[np.ndarray]:
    """The weights (O, I, height, width) of the convolutions in 8 bits."""
    model = onnx.load(graph).graph
    constants = {constant.name: constant for constant in model.initializer}
    of_weights = {node.output[0]: node.input[0] for node in model.node if node.op_type == "DequantizeLinear"}
    names = [of_weights[node.input[1]] for node in model.node if node.op_type == "Conv"]
    return [onnx.numpy_helper.to_array(constants[name]) for name in names]


def test_no_cpu_can_saturate(bundle: Bundle) -> None:
    """Without VNNI the products of two neighbours with unsigned activations are added in 16 bits and saturate."""
    graphs = [bundle.onnx("int8"), *(Bundle.load(folder).onnx("int8") for folder in COMMITTED)]
    weights = [layer.astype(np.int64) for graph in graphs for layer in int8_weights(graph)]
    assert len(weights) == 6 * len(graphs)

    for layer in weights:
        for flat in (layer.reshape(len(layer), -1), layer.transpose(0, 2, 3, 1).reshape(len(layer), -1)):
            positive, negative = flat.clip(min=0), flat.clip(max=0)  # the activations of the others are 0
            assert (255 * (positive[:, :-1] + positive[:, 1:])).max() <= 32_767
            assert (255 * (negative[:, :-1] + negative[:, 1:])).min() >= -32_768
            assert (255 * (np.abs(flat[:, :-1]) + np.abs(flat[:, 1:]))).max() <= 32_767


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (8, 16, 1, 1), (4, 1, 3, 3), (5, 2, 1, 1), (3, 1, 1, 1)])
def test_scales_are_the_least_that_are_safe(shape: tuple[int, int, int, int]) -> None:
    weights = np.random.default_rng(sum(shape)).standard_t(3, shape).astype(np.float32)

    def fits(scales: np.ndarray) -> np.ndarray:
        """Channel by channel, as the rule reads."""
        whole = np.abs(np.rint(weights / scales[:, None, None, None])).astype(int)
        rows = zip(whole.reshape(shape[0], -1), whole.transpose(0, 2, 3, 1).reshape(shape[0], -1), strict=True)
        return np.array(
            [
                max(outer.max(), inner.max()) <= 127
                and all(255 * (a + b) <= 32_767 for row in (outer, inner) for a, b in pairwise(row))
                for outer, inner in rows
            ]
        )

    scales = safe_scales(weights)
    assert scales.shape == shape[:1]
    assert scales.dtype == np.float32
    assert fits(scales).all()
    assert not fits(0.98 * scales).any()


def test_a_channel_of_zeros_has_a_scale() -> None:
    weights = np.zeros((2, 3, 3, 3), np.float32)
    assert (safe_scales(weights) == 1).all()

    weights[0] = 0.5
    assert safe_scales(weights)[1] == pytest.approx(1e-4 * safe_scales(weights)[0])


def test_a_sorted_folder_is_calibrated_by_images_of_every_class(
    bundle: Bundle, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = images_of(run, Sources()).part("train", torch.device("cpu"))
    order = part.labels.argsort()
    by_class = Labelled(part.images[order], part.labels[order])
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(variants, "CALIBRATION_IMAGES", 200)
    monkeypatch.setattr(variants, "write_int8", lambda source, target, images: seen.append(images))

    with pytest.raises(BundleError):  # there is no graph to measure
        add_variant(Bundle(tmp_path, bundle.manifest), "int8", by_class, {}, by_class)
    keys = {image.numpy().tobytes(): int(label) for image, label in zip(part.images, part.labels, strict=True)}
    labels = [keys[image.numpy().tobytes()] for image in seen[0]]
    assert len(labels) == 200
    assert set(labels) == set(range(10))


def test_variants_of_a_finished_bundle_are_made_anew(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    images = images_of(run, Sources())
    test, train_split = (images.part(name, torch.device("cpu")) for name in ("test", "train"))
    folder = Path(shutil.copytree(bundle.path, tmp_path / "digits" / "1"))
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("a card")

    renewed = renew_variants(folder, ["int8"], test, train_split)

    assert renewed.manifest == bundle.manifest  # files included: the same images give the same graphs
    assert (folder / "report" / "index.html").read_text() == "a card"
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def test_a_variant_that_cannot_be_renewed_leaves_the_bundle(
    bundle: Bundle, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = images_of(run, Sources()).part("test", torch.device("cpu"))
    folder = Path(shutil.copytree(bundle.path, tmp_path / "digits" / "1"))
    monkeypatch.setattr(variants, "LEAST_AGREEMENT", 1.1)

    with pytest.raises(VariantError):
        renew_variants(folder, [], part, part)
    assert Bundle.load(folder).manifest == bundle.manifest


def test_all_but_the_head_is_in_16_bits(bundle: Bundle) -> None:
    graph = onnx.load(bundle.onnx("float16")).graph
    kinds = {constant.name: constant.data_type for constant in graph.initializer}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    weights = {node.op_type: {kinds[name] for name in node.input if kinds.get(name) in floats} for node in graph.node}

    assert weights["Conv"] == {onnx.TensorProto.FLOAT16}
    (features,) = [n for n, node in enumerate(graph.node) if "features" in node.output]
    of_head = [kinds[name] for node in graph.node[features + 1 :] for name in node.input if kinds.get(name) in floats]
    assert len(of_head) >= 3  # means, scales, weights
    assert set(of_head) == {onnx.TensorProto.FLOAT}
    assert bundle.onnx("float16").stat().st_size < 0.6 * bundle.onnx().stat().st_size


@pytest.mark.parametrize("precision", VARIANTS)
def test_the_manifest_holds_what_it_costs(bundle: Bundle, run: Run, precision: VariantPrecision) -> None:
    test = images_of(run, Sources()).part("test", torch.device("cpu"))
    exact, quick = (Predictor(bundle, precision=one).infer(test.images.numpy()) for one in ("float32", precision))
    variant = bundle.manifest.variants[precision]
    labels = test.labels.numpy()
    assert variant.accuracy == pytest.approx((quick["posterior"].argmax(1) == labels).mean(), abs=1e-6)
    assert variant.accuracy >= bundle.manifest.metrics["accuracy"] - 0.002
    first = exact["posterior"].argmax(1)
    same = [
        exact["responsibilities"][n, c].argmax() == quick["responsibilities"][n, c].argmax()
        for n, c in enumerate(first)
    ]
    assert variant.agreement == pytest.approx(np.mean(same), abs=1e-6)
    assert np.abs(exact["posterior"] - quick["posterior"]).max() > 1e-6  # it is another graph


@pytest.mark.parametrize("precision", VARIANTS)
def test_it_is_served_under_its_own_golden_answers(bundle: Bundle, tmp_path: Path, precision: VariantPrecision) -> None:
    predictor = Predictor(bundle, precision=precision)
    predictor.warm_up()

    images, outputs = bundle.read_golden(precision)
    assert np.array_equal(images, bundle.read_golden()[0])
    assert predictor.infer(images)["posterior"] == pytest.approx(outputs["posterior"], abs=1e-6)
    assert package(bundle.path, model_store=tmp_path, settings=WorkerSettings(precision=precision)).is_file()


@pytest.mark.parametrize("precision", VARIANTS)
@pytest.mark.parametrize(("name", "value"), [("MOST_ACCURACY_LOST", -1.0), ("LEAST_AGREEMENT", 1.1)])
def test_a_variant_that_loses_too_much_is_refused(
    name: str,
    value: float,
    precision: VariantPrecision,
    bundle: Bundle,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Bundle(Path(shutil.copytree(bundle.path, tmp_path / "1")), bundle.manifest)
    test = images_of(run, Sources()).part("test", torch.device("cpu"))
    exact = Predictor(bundle).infer(test.images.numpy())
    monkeypatch.setattr(variants, name, value)

    with pytest.raises(VariantError, match=rf" in {precision} must .*: export without --{precision}$"):
        add_variant(plain, precision, test, exact, test)


def test_an_export_with_a_refused_variant_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "LEAST_AGREEMENT", 1.1)

    with pytest.raises(VariantError, match=r"^assignments in float16 must agree for 110% of images, got "):
        export(run, Sources(), tmp_path / "digits" / "1", variants=["float16"])
    assert not (tmp_path / "digits").exists()


@pytest.mark.parametrize("precision", VARIANTS)
def test_a_bundle_without_it_says_so(bundle_dir: Path, tmp_path: Path, precision: VariantPrecision) -> None:
    for use in (
        lambda: Predictor.open(bundle_dir, precision=precision),
        lambda: package(bundle_dir, model_store=tmp_path, settings=WorkerSettings(precision=precision)),
    ):
        with pytest.raises(
            BundleError, match=rf" must be float32, got {precision}: export the bundle with --{precision}$"
        ):
            use()


@pytest.mark.parametrize("precision", VARIANTS)
def test_variants_run_by_onnx_alone(bundle: Bundle, tmp_path: Path, precision: VariantPrecision) -> None:
    for use in (
        lambda: Predictor(bundle, "torchscript", precision=precision),
        lambda: package(
            bundle.path, model_store=tmp_path, settings=WorkerSettings(runtime="torchscript", precision=precision)
        ),
    ):
        with pytest.raises(BundleError, match=rf"^precision {precision} must run by onnx, got torchscript$"):
            use()


def test_int8_runs_on_the_cpu_alone(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"^precision int8 must run on the CPU, got cuda$"):
        Predictor(bundle, "onnx", "cuda", precision="int8")


def test_agreement_by_hand() -> None:
    first = {
        "posterior": np.array([[0.9, 0.1], [0.2, 0.8]]),
        "responsibilities": np.array([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.3, 0.7]]]),
    }
    second = {"posterior": first["posterior"], "responsibilities": first["responsibilities"].copy()}
    assert assignments_that_agree(first, second) == 1

    second["responsibilities"][1, 1] = [0.6, 0.4]
    assert assignments_that_agree(first, second) == 0.5
    assert assignments_that_agree({"posterior": first["posterior"]}, second) is None
