"""Variants in float16 and int8: what they are worth, when they are refused, and how they are served."""

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from training_samples import int8_weights

from serving.bundle import Bundle, InputSpec, VariantPrecision
from serving.errors import BundleError
from serving.predictor import Predictor
from serving.settings import WorkerSettings
from serving.torchserve.archive import package
from training import variant_costs, variants
from training.data import Dataset, Sources
from training.evaluate import measure
from training.export import export
from training.images import LabelledImages, images_of
from training.recipe import parse_recipe
from training.run import Run
from training.splits import split
from training.train import train
from training.variant_costs import VariantError
from training.variants import add_variants, renew_variants, wanted_variants

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = [ROOT / "model_store" / name / "1" for name in ("cifar100-lda-best", "fashion-mnist-mda-best", "mnist-mda")]
VARIANTS: tuple[VariantPrecision, ...] = ("float16", "int8")
RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "validation": 0.4},
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


def sorted_by_class(counts: tuple[int, ...], **shares: float) -> LabelledImages:
    """Images whose pixels say where they lie, class by class as a folder has them."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.arange(len(labels), dtype=torch.int32).view(torch.uint8).reshape(-1, 1, 2, 2)
    classes = tuple("abcdefgh"[: len(counts)])
    dataset = Dataset("sorted", images, labels, classes, InputSpec(channels=1, height=2, width=2))
    return LabelledImages(dataset, split(dataset, test=0.1, seed=0, **shares))


def labels_of(images: LabelledImages, sample: torch.Tensor) -> torch.Tensor:
    return images.dataset.labels[positions_of(sample)]


def positions_of(sample: torch.Tensor) -> torch.Tensor:
    return sample.reshape(-1, 4).contiguous().view(torch.int32)[:, 0].long()


def test_a_sorted_folder_is_calibrated_by_images_of_every_class_in_its_share() -> None:
    images = sorted_by_class((3000, 1000, 40, 10), validation=0.1)

    wanted = wanted_variants(["int8"], images)

    assert len(wanted.calibration) == 1024
    found = labels_of(images, wanted.calibration).bincount(minlength=4)
    assert found.tolist() == pytest.approx([1024 * share / 4050 for share in (3000, 1000, 40, 10)], abs=2)
    assert found.min() >= 1
    assert set(positions_of(wanted.calibration).tolist()) <= set(images.splits["train"].tolist())


def test_the_validation_split_judges() -> None:
    images = sorted_by_class((3000, 1000, 40, 10), validation=0.1)

    wanted = wanted_variants(["int8"], images)

    assert wanted.judged_split == "validation"
    judged = positions_of(wanted.judged.images)
    assert judged.sort().values.tolist() == images.splits["validation"].tolist()
    assert torch.equal(wanted.judged.labels, images.dataset.labels[judged])


@pytest.mark.parametrize(("counts", "calibrating"), [((3000, 1000, 40, 10), 1024), ((30, 20, 10), 27)])
def test_without_one_training_images_judge_that_int8_has_not_seen(counts: tuple[int, ...], calibrating: int) -> None:
    images = sorted_by_class(counts, validation=0)

    wanted = wanted_variants(["int8"], images)

    assert wanted.judged_split == "train"
    calibration, judged = (set(positions_of(part).tolist()) for part in (wanted.calibration, wanted.judged.images))
    assert len(calibration) == calibrating
    assert not calibration & judged
    assert calibration | judged == set(images.splits["train"].tolist())
    assert set(wanted.judged.labels.tolist()) == set(range(len(counts)))


def test_large_images_calibrate_by_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "CALIBRATION_PIXELS", 50 * 2 * 2 + 1)
    images = sorted_by_class((300, 100), validation=0)

    wanted = wanted_variants(["int8"], images)

    assert len(wanted.calibration) == 50
    assert labels_of(images, wanted.calibration).bincount().tolist() == pytest.approx([37.5, 12.5], abs=1)
    assert len(wanted.judged) == len(images.splits["train"]) - 50


def test_so_many_images_judge_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "JUDGED_IMAGES", 100)
    images = sorted_by_class((3000, 1000, 40, 10), validation=0)

    wanted = wanted_variants(["int8"], images)

    assert wanted.judged.labels.bincount().tolist() == pytest.approx([74, 25, 1, 0], abs=2)
    assert len(wanted.judged) == 100


def test_variants_of_a_finished_bundle_are_made_anew(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.path, tmp_path / "digits" / "1"))
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("a card")

    renewed = renew_variants(folder, ["int8"], images_of(run, Sources()))

    assert renewed.manifest == bundle.manifest  # files included: the same images give the same graphs
    assert (folder / "report" / "index.html").read_text() == "a card"
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def test_a_variant_that_cannot_be_renewed_leaves_the_bundle(
    bundle: Bundle, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(bundle.path, tmp_path / "digits" / "1"))
    monkeypatch.setattr(variant_costs, "MOST_NLL_GAINED", (-1.0, 0.0))

    with pytest.raises(VariantError):
        renew_variants(folder, [], images_of(run, Sources()))
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


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("precision", VARIANTS)
def test_the_manifest_holds_what_it_costs(
    bundle: Bundle, run: Run, precision: VariantPrecision, split: Literal["validation", "test"]
) -> None:
    part = images_of(run, Sources()).part(split, torch.device("cpu"))
    exact, quick = (Predictor(bundle, precision=one).infer(part.images.numpy()) for one in ("float32", precision))
    variant, labels = bundle.manifest.variants[precision], part.labels.numpy()
    cost = variant.judged if split == "validation" else variant.test

    assert cost is not None
    assert (cost.split, cost.images) == (split, len(labels))
    for position, outputs in enumerate((exact, quick)):
        assert cost.accuracy[position] == pytest.approx((outputs["posterior"].argmax(1) == labels).mean(), abs=1e-6)
        assert cost.nll[position] == pytest.approx(measure(outputs, part.labels)["nll"], abs=1e-4)
    chosen = [
        [(c, outputs["responsibilities"][n, c].argmax()) for n, c in enumerate(outputs["posterior"].argmax(1))]
        for outputs in (exact, quick)
    ]
    assert cost.agreement == pytest.approx(np.mean([a == b for a, b in zip(*chosen, strict=True)]), abs=1e-6)
    shift = quick["log_density"].astype(np.float64) - exact["log_density"]
    assert cost.density_shift is not None
    assert cost.density_shift["0.5"] == pytest.approx(np.median(shift), abs=1e-3)
    assert np.abs(exact["posterior"] - quick["posterior"]).max() > 1e-6  # it is another graph


@pytest.mark.parametrize("precision", VARIANTS)
def test_the_manifest_says_in_short_what_it_is_on_the_test_split(bundle: Bundle, precision: VariantPrecision) -> None:
    variant = bundle.manifest.variants[precision]

    assert variant.test is not None
    assert variant.accuracy == variant.test.accuracy[1] >= bundle.manifest.metrics["accuracy"] - 0.002
    assert variant.agreement == variant.test.agreement
    for name in ("accuracy", "nll", "ece"):
        assert getattr(variant.test, name)[0] == bundle.manifest.metrics[name]


@pytest.mark.parametrize("precision", VARIANTS)
def test_it_is_served_under_its_own_golden_answers(bundle: Bundle, tmp_path: Path, precision: VariantPrecision) -> None:
    predictor = Predictor(bundle, precision=precision)
    predictor.warm_up()

    images, outputs = bundle.read_golden(precision)
    assert np.array_equal(images, bundle.read_golden()[0])
    assert predictor.infer(images)["posterior"] == pytest.approx(outputs["posterior"], abs=1e-6)
    assert package(bundle.path, model_store=tmp_path, settings=WorkerSettings(precision=precision)).is_file()


@pytest.mark.parametrize("precision", VARIANTS)
def test_an_export_with_a_refused_variant_leaves_nothing(
    precision: VariantPrecision, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variant_costs, "MOST_NLL_GAINED", (-1.0, 0.0))

    with pytest.raises(
        VariantError, match=rf"^NLL in {precision} must be at most 0.0000 nats on 1,.* validation images, got "
    ):
        export(run, Sources(), tmp_path / "digits" / "1", variants=[precision])
    assert not (tmp_path / "digits").exists()


def test_the_test_split_decides_nothing(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    images = images_of(run, Sources())
    plain = Bundle(Path(shutil.copytree(bundle.path, tmp_path / "1")), bundle.manifest)
    test, wanted = images.part("test", torch.device("cpu")), wanted_variants(["float16"], images)
    noise = Predictor(bundle).infer(test.images.flip(0).numpy())  # as if float32 had answered otherwise for it

    made = add_variants(plain, wanted, test, noise)["float16"]

    assert made.test is not None
    assert made.test.agreement < 0.5
    assert made.judged == bundle.manifest.variants["float16"].judged


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
