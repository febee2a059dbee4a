"""Bundles: both graphs answer what the classifier answers, and nothing is left of an export that fails."""

import copy
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from training_samples import FOLDER_DATA, begun, digits, digits_from, small_recipe, write_digit_folder

from serving.bundle import MANIFEST, Bundle, write_manifest
from serving.errors import BundleError
from serving.runtimes import open_runtime
from training import export as export_module
from training.classifier import Architecture, Classifier, build_classifier
from training.data import Sources
from training.evaluate import measure, run_graph
from training.export import ParityError, check_parity, export, golden_images, write_bundle, write_graphs
from training.images import load_images
from training.recipe import EncoderSpec, HeadSpec
from training.run import Run, RunError
from training.train import train

pytestmark = pytest.mark.isa

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
FIELDS: dict[str, Any] = {
    "labels": digits().classes,
    "input": digits().input,
    "recipe": {},
    "dataset": {"name": "digits", "splits": {"test": 100}, "fingerprint": "0" * 64},
}


def classifier_of(head: HeadSpec, encoder: EncoderSpec | None = None) -> Classifier:
    torch.manual_seed(0)
    encoder = encoder or EncoderSpec(kind="linear", dim=3)
    classifier = build_classifier(Architecture((1, 8, 8), 10, encoder, head))
    classifier.learn_normalisation(digits().images)
    return classifier.eval()


LDA = classifier_of(HeadSpec(kind="lda", covariance="diagonal"), EncoderSpec(kind="mlp", dim=3, hidden=(8,)))
SOFTMAX = classifier_of(HeadSpec(kind="softmax"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_folder(tmp_path_factory.mktemp("images") / "some-digits")


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished training of a convolutional encoder and an MDA head with full covariances; read only."""
    recipe = small_recipe(data=FOLDER_DATA, fit={"epochs": 10}, refit={"dim": 4, "components": 2, "ridge": 0.01})
    run = Run.create("some-digits", recipe, "one", tmp_path_factory.mktemp("runs"))
    train(run, Sources(folder=folder), CPU)
    return run


@pytest.fixture(scope="module")
def mda(run: Run, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The run's bundle; read only."""
    return export(run, Sources(folder=folder), tmp_path_factory.mktemp("store") / "some-digits" / "3")


@pytest.fixture(scope="module")
def lda(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of an untrained LDA; read only."""
    return write_bundle(tmp_path_factory.mktemp("store") / "lda" / "1", LDA, digits_from(0, 100), **FIELDS)


@pytest.fixture(scope="module")
def softmax(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of an untrained softmax classifier; read only."""
    return write_bundle(tmp_path_factory.mktemp("store") / "softmax" / "1", SOFTMAX, digits_from(0, 100), **FIELDS)


@pytest.fixture(params=["lda", "mda", "softmax"])
def pair(request: pytest.FixtureRequest, run: Run) -> tuple[Bundle, Classifier]:
    """A bundle and the classifier that it was made from."""
    classifier = {"lda": LDA, "softmax": SOFTMAX}.get(request.param) or run.load_classifier()
    return request.getfixturevalue(request.param), classifier


def answers_of(classifier: Classifier, images: torch.Tensor) -> dict[str, np.ndarray]:
    """What a classifier says in float64, from its scores."""
    classifier = copy.deepcopy(classifier).double().eval()
    with torch.no_grad():
        features, log_joints, of_components = classifier(images)
    answers = {"posterior": log_joints.softmax(1), "features": features}
    if of_components is not None:
        answers["responsibilities"] = of_components.softmax(2)
        answers["log_density"] = log_joints.logsumexp(1) - features.shape[1] / 2 * np.log(2 * np.pi)
    return {name: value.numpy() for name, value in answers.items()}


def copied(bundle: Bundle, folder: Path) -> Path:
    return Path(shutil.copytree(bundle.path, folder / bundle.path.parent.name / bundle.path.name))


def resigned(folder: Path) -> Bundle:
    """The bundle in a folder whose files were changed, with a manifest that fits them."""
    fields = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    write_manifest(folder, **{name: value for name, value in fields.items() if name != "sha256"})
    return Bundle.load(folder)


# What a bundle computes


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_graphs_answer_what_the_classifier_answers(kind: str, pair: tuple[Bundle, Classifier]) -> None:
    """Real images, which the export itself has not compared, in batches of several sizes."""
    bundle, classifier = pair
    runtime = open_runtime(bundle, kind, "cpu", None)

    for count in (1, 3, 17):
        images = digits().images[200 : 200 + count]
        outputs, expected = runtime(images.numpy()), answers_of(classifier, images)

        assert set(outputs) == set(expected) == set(bundle.manifest.outputs)
        assert {value.dtype for value in outputs.values()} == {np.dtype(np.float32)}
        np.testing.assert_allclose(outputs["posterior"], expected["posterior"], atol=1e-5)
        for name, value in expected.items():
            assert outputs[name].shape == value.shape
            np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-4)


def test_golden_answers_are_the_classifiers_in_float64(pair: tuple[Bundle, Classifier]) -> None:
    bundle, classifier = pair
    with np.load(bundle.golden()) as file:
        golden = {name: file[name] for name in file.files}

    images = golden.pop("images")

    np.testing.assert_array_equal(images, golden_images((1, 8, 8)))
    assert set(golden) == set(bundle.manifest.outputs)
    for name, value in answers_of(classifier, torch.from_numpy(images)).items():
        assert golden[name].dtype == np.float64
        np.testing.assert_allclose(golden[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 12)])
def test_golden_images_are_seeded_noise_and_shapes(shape: tuple[int, int, int]) -> None:
    images = golden_images(shape)

    assert (images.shape, images.dtype) == ((8, *shape), torch.uint8)
    assert torch.equal(images, golden_images(shape))
    assert not torch.equal(images, golden_images(shape, seed=1))
    assert len(images.flatten(1).unique(dim=0)) == 8
    pixels = {tuple(image.flatten().tolist()) for image in digits().images}
    assert not any(tuple(image.flatten().tolist()) in pixels for image in images)


def test_manifest_says_what_the_model_is(mda: Bundle, run: Run, softmax: Bundle) -> None:
    manifest = mda.manifest

    assert (manifest.name, manifest.version) == ("some-digits", 3)
    assert manifest.labels == ("0", "1", "4")
    assert manifest.head.model_dump() == {"kind": "mda", "classes": 3, "dim": 4, "components": 2}
    assert (manifest.input.channels, manifest.input.height, manifest.input.width) == (1, 8, 8)
    assert manifest.outputs == ("posterior", "responsibilities", "log_density", "features")
    assert manifest.recipe == run.recipe.model_dump(mode="json", exclude_none=True)
    assert manifest.dataset.model_dump() == run.description()["dataset"]
    assert manifest.dataset.splits == {"train": 72, "validation": 18, "test": 30}
    assert manifest.versions["torch"] == str(torch.__version__)
    assert manifest.versions["onnx"] == onnx.__version__
    assert softmax.manifest.outputs == ("posterior", "features")
    assert set(softmax.manifest.sha256) == {"golden.npz", "model.onnx", "model.pt"}


def test_metrics_are_those_of_the_test_split(mda: Bundle, run: Run, folder: Path) -> None:
    test = load_images(run.recipe, Sources(folder=folder)).part("test", CPU)
    expected = answers_of(run.load_classifier(), test.images)

    again = measure(run_graph(open_runtime(mda, "onnx", "cpu", None), test.images), test.labels)

    assert mda.manifest.metrics == {"split": "test", **again}
    assert again["images"] == 30
    assert again["accuracy"] == pytest.approx((expected["posterior"].argmax(1) == test.labels.numpy()).mean(), abs=1e-6)
    assert again["accuracy"] > 0.85
    assert again["log_density"] == pytest.approx(expected["log_density"].mean(), rel=1e-3)


# What is in its files


def test_onnx_is_one_checked_file_for_any_number_of_uint8_images(pair: tuple[Bundle, Classifier]) -> None:
    bundle, classifier = pair
    model = onnx.load(bundle.onnx())

    onnx.checker.check_model(model, full_check=True)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    (images,) = model.graph.input
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    sizes = images.type.tensor_type.shape.dim
    assert sizes[0].dim_param
    assert [size.dim_value for size in sizes[1:]] == list(classifier.architecture.image_shape)
    assert tuple(output.name for output in model.graph.output) == bundle.manifest.outputs
    assert {file.name for file in bundle.path.iterdir()} == {MANIFEST, *bundle.manifest.files}


def test_graphs_hold_weights_and_no_images(pair: tuple[Bundle, Classifier]) -> None:
    bundle, classifier = pair
    weights = sum(value.numel() for value in classifier.state_dict().values())
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(bundle.onnx()).graph.initializer]

    assert all(constant.dtype != np.uint8 for constant in constants)
    assert sum(constant.size for constant in constants if constant.dtype == np.float32) < 1.1 * weights + 100
    assert bundle.torchscript.stat().st_size < 4 * (1.1 * weights + 100) + 40_000


def test_graphs_do_not_tell_where_they_were_made(pair: tuple[Bundle, Classifier]) -> None:
    bundle, _ = pair
    with zipfile.ZipFile(bundle.torchscript) as archive:
        parts = [archive.read(name) for name in archive.namelist()]

    for content in (*parts, bundle.onnx().read_bytes()):
        assert str(ROOT).encode() not in content
        assert b"site-packages" not in content


# What is refused


def test_graph_that_computes_something_else_is_refused(lda: Bundle, tmp_path: Path) -> None:
    folder = copied(lda, tmp_path)
    model = onnx.load(folder / "model.onnx")
    means = next(tensor for tensor in model.graph.initializer if tensor.name == "served_head.means")
    means.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(means) + np.float32(0.01), means.name))
    onnx.save(model, folder / "model.onnx")

    check_parity(lda)
    with pytest.raises(ParityError, match=r"^posterior of the onnx graph must be within 5e-05 of float64, got 0.0\d+ "):
        check_parity(resigned(folder))


def test_torchscript_that_computes_something_else_is_refused(lda: Bundle, tmp_path: Path) -> None:
    folder = copied(lda, tmp_path)
    other = copy.deepcopy(LDA)
    with torch.no_grad():
        other.encoder.projection.weight *= 1.01
    export_module._write_torchscript(
        export_module.ServedGraph(other).eval(), golden_images((1, 8, 8)), folder / "model.pt"
    )

    with pytest.raises(ParityError, match=r"^posterior of the torchscript graph must be within 5e-05 of float64, got "):
        check_parity(resigned(folder))


def test_graph_that_answers_no_numbers_is_refused(lda: Bundle, tmp_path: Path) -> None:
    folder = copied(lda, tmp_path)
    model = onnx.load(folder / "model.onnx")
    means = next(tensor for tensor in model.graph.initializer if tensor.name == "served_head.means")
    means.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(means) * np.float32(np.nan), means.name))
    onnx.save(model, folder / "model.onnx")

    with pytest.raises(ParityError, match="got nan apart"):
        check_parity(resigned(folder))


def test_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No float32 graph is within a tolerance of nothing."""
    monkeypatch.setattr(export_module, "OF_TOLERANCE", 0.0)

    with pytest.raises(ParityError, match=r"must be within 0 of float64, got .* the graph computes something else"):
        write_bundle(tmp_path / "softmax" / "1", SOFTMAX, digits_from(0, 100), **FIELDS)

    assert list(tmp_path.iterdir()) == []


def test_failed_export_keeps_the_bundle_that_it_was_to_replace(
    softmax: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(softmax, tmp_path)

    def fails(*_: object) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(export_module, "write_graphs", fails)
    with pytest.raises(RuntimeError, match="no more memory"):
        write_bundle(folder, LDA, digits_from(0, 100), replace=True, **FIELDS)

    assert Bundle.load(folder).manifest == softmax.manifest
    assert list(folder.parent.iterdir()) == [folder]


def test_bundle_that_is_there_is_replaced_only_on_request(softmax: Bundle, lda: Bundle, tmp_path: Path) -> None:
    folder = copied(softmax, tmp_path)

    with pytest.raises(BundleError, match=rf"^{folder} must not exist yet, got a bundle that is there"):
        write_bundle(folder, LDA, digits_from(0, 100), **FIELDS)
    assert Bundle.load(folder).manifest == softmax.manifest

    replaced = write_bundle(folder, LDA, digits_from(0, 50), replace=True, **FIELDS)
    assert replaced.manifest.head == lda.manifest.head
    assert replaced.manifest.name == "softmax"
    assert replaced.manifest.metrics["images"] == 50


def test_unfinished_run_is_not_exported(tmp_path: Path, folder: Path) -> None:
    run = begun(Run.create("small", small_recipe(data=FOLDER_DATA), "one", tmp_path))

    with pytest.raises(RunError, match=r"^run must be finished"):
        export(run, Sources(folder=folder), tmp_path / "store" / "small" / "1")
    assert not (tmp_path / "store").exists()


def test_run_is_not_exported_with_other_images_than_its_own(run: Run, tmp_path: Path) -> None:
    """Its test split could hold images that it was trained on."""
    other = write_digit_folder(tmp_path / "other", per_class=41)

    with pytest.raises(RunError, match=rf"^images must be those that {run.path} was trained on"):
        export(run, Sources(folder=other), tmp_path / "store" / "small" / "1")
    assert not (tmp_path / "store").exists()


def test_export_leaves_the_classifier_as_it_was(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in SOFTMAX.state_dict().items()}

    write_graphs(SOFTMAX, tmp_path)

    assert all(torch.equal(value, before[name]) for name, value in SOFTMAX.state_dict().items())
    assert {value.dtype for value in SOFTMAX.parameters()} == {torch.float32}
