"""Variants in float16 and int8: what they are worth, when they are refused, and how they are served."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from serving.bundle import Bundle, VariantPrecision
from serving.errors import BundleError
from serving.predictor import Predictor
from serving.torchserve.archive import package
from training import variants
from training.data import Sources
from training.export import export
from training.images import images_of
from training.recipe import parse_recipe
from training.run import Run
from training.train import train
from training.variants import VariantError, assignments_that_agree

VARIANTS: tuple[VariantPrecision, ...] = ("float16", "int8")
RECIPE: dict[str, Any] = {
    "data": {"name": "digits"},
    "encoder": {"kind": "six-conv", "dim": 4, "width": 24},
    "head": {"kind": "lda"},
    "loss": {"kind": "cross-entropy"},
    "fit": {"epochs": 4, "batch_size": 64, "lr": 3e-3, "precision": "float32"},
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
    nodes = {node.name: node for node in onnx.load(bundle.onnx("int8")).graph.node}
    made_by = {output: node.op_type for node in nodes.values() for output in node.output}

    convolutions = [node for node in nodes.values() if node.op_type == "Conv"]
    assert len(convolutions) == 6
    assert all(made_by[name] == "DequantizeLinear" for node in convolutions for name in node.input[:2])
    products = [node for node in nodes.values() if node.op_type in ("Gemm", "MatMul")]
    assert products
    assert not any(made_by.get(name) == "DequantizeLinear" for node in products for name in node.input[1:])


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
    assert package(bundle.path, model_store=tmp_path, precision=precision).is_file()


@pytest.mark.parametrize("precision", VARIANTS)
@pytest.mark.parametrize(("name", "value"), [("MOST_ACCURACY_LOST", -1.0), ("LEAST_AGREEMENT", 1.1)])
def test_a_variant_that_loses_too_much_is_refused(
    name: str,
    value: float,
    precision: VariantPrecision,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(variants, name, value)

    with pytest.raises(VariantError, match=rf" in {precision} must .*: export without --{precision}$"):
        export(run, Sources(), tmp_path / "digits" / "1", variants=[precision])
    assert not (tmp_path / "digits").exists()


@pytest.mark.parametrize("precision", VARIANTS)
def test_a_bundle_without_it_says_so(bundle_dir: Path, tmp_path: Path, precision: VariantPrecision) -> None:
    for use in (
        lambda: Predictor.open(bundle_dir, precision=precision),
        lambda: package(bundle_dir, model_store=tmp_path, precision=precision),
    ):
        with pytest.raises(
            BundleError, match=rf" must be float32, got {precision}: export the bundle with --{precision}$"
        ):
            use()


@pytest.mark.parametrize("precision", VARIANTS)
def test_variants_run_by_onnx_alone(bundle: Bundle, tmp_path: Path, precision: VariantPrecision) -> None:
    for use in (
        lambda: Predictor(bundle, "torchscript", precision=precision),
        lambda: package(bundle.path, model_store=tmp_path, runtime="torchscript", precision=precision),
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
