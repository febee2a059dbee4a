"""The feature plane: axes against scikit-learn, ellipses worked by hand, its file, and what it leaves as it was."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, COMPONENTS, DIM, gmm_answers, golden_images
from sklearn.decomposition import PCA
from training_samples import FOLDER_DATA, digits, small_recipe, write_digit_folder
from typer.testing import CliRunner

from serving.bundle import PLANE, Bundle, write_manifest
from serving.errors import BundleError
from serving.plane import Plane
from serving.runtimes import open_runtime
from serving.torchserve.archive import Archive, extracted, package, rebuild
from training import plane as making
from training.__main__ import app
from training.data import Sources
from training.evaluate import run_graph
from training.export import export
from training.held_out import held_out_images
from training.images import LabelledImages, images_of
from training.plane import add_plane, ellipses, plane_images, projection_of
from training.recipe import HeadSpec
from training.report.feature_plots import gaussians_of
from training.run import Run
from training.splits import split
from training.train import train
from training.variants import renew_variants

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
COMMITTED = ("cifar100-lda-best", "fashion-mnist-mda-best", "flowers12-mda", "mnist-mda")


def plane_of(**changes: Any) -> Plane:
    """A plane for the mixture bundle of conftest."""
    parts: dict[str, Any] = {
        "axes": np.eye(2, DIM, dtype=np.float32),
        "centre": np.zeros(DIM, np.float32),
        "points": np.arange(8, dtype=np.float32).reshape(4, 2),
        "labels": np.arange(4),
        "means": np.zeros((CLASSES, COMPONENTS, 2), np.float32),
        "covariances": np.zeros((CLASSES, COMPONENTS, 2, 2), np.float32),
        "weights": np.full((CLASSES, COMPONENTS), 0.5, np.float32),
    }
    return Plane(**parts | changes)


@pytest.fixture
def planed(make_bundle, tmp_path: Path) -> Path:
    """A bundle of the mixture that has a plane."""
    folder = Path(shutil.copytree(make_bundle(), tmp_path / "tiny-mda" / "1"))
    plane_of().write(folder / PLANE)
    fields = Bundle.load(make_bundle()).manifest.model_dump(exclude={"sha256"})
    (folder / "bundle.json").unlink()
    write_manifest(folder, **fields | {"plane": {"images": 4, "explained": 0.7}})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished MDA on digits that holds images out; read only."""
    recipe = small_recipe(
        fit={"epochs": 4}, refit={"dim": 4, "components": 2, "ridge": 0.01}, calibration={"share": 0.3}
    )
    run = Run.create("digits", recipe, "one", tmp_path_factory.mktemp("runs"))
    train(run, Sources(), CPU)
    return run


@pytest.fixture(scope="module")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle; read only."""
    return export(run, Sources(), tmp_path_factory.mktemp("store") / "digits" / "1")


def features_of(bundle: Bundle, images: Any) -> dict[str, np.ndarray]:
    graph = open_runtime(bundle, "torchscript")  # not the one that the plane was made by
    return run_graph(graph, images, bundle.manifest.input)


# The file


def test_file_gives_back_what_was_written(tmp_path: Path) -> None:
    plane = plane_of()

    plane.write(tmp_path / PLANE)

    for name, array in vars(Plane.read(tmp_path / PLANE)).items():
        np.testing.assert_array_equal(array, getattr(plane, name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"axes": np.eye(2, 2, dtype=np.float32)},
            r"got axes of float32 \(2, 2\), which must be float32 \(2, 3\) beside the others",
        ),
        ({"points": np.zeros((5, 2), np.float32)}, r"got points of float32 \(5, 2\), which must be float32 \(4, 2\)"),
        ({"labels": np.arange(4.0)}, r"got labels of float64 \(4,\), which must be int64 \(4,\)"),
        ({"labels": np.array([0, 1, 2, 4])}, r"got labels from 0 to 4 of 4 classes"),
        ({"weights": np.zeros(3, np.float32)}, r"got means of float32 \(4, 2, 2\), which must be float32 \(0, 0, 2\)"),
        ({"centre": np.array([0, 1, np.nan], np.float32)}, r"got centre that are not all finite"),
        ({"centre": np.array([None] * 3)}, r"Object arrays cannot be loaded when allow_pickle=False"),
    ],
)
def test_file_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    plane_of(**changes).write(tmp_path / PLANE)

    with pytest.raises(BundleError, match=rf"{PLANE} must hold the feature plane of a model, .*{message}"):
        Plane.read(tmp_path / PLANE)


def test_file_that_is_no_archive_or_lacks_an_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / PLANE).write_bytes(b"nothing")
    with pytest.raises(BundleError, match=r"must hold the feature plane of a model"):
        Plane.read(tmp_path / PLANE)

    np.savez(tmp_path / PLANE, axes=np.eye(2))
    with pytest.raises(BundleError, match=r"got 'centre is not a file in the archive'"):
        Plane.read(tmp_path / PLANE)


# The bundle


def test_plane_changes_no_digest_of_the_bundle_but_is_verified(planed: Path, make_bundle) -> None:
    without, bundle = Bundle.load(make_bundle()), Bundle.load(planed)

    assert without.plane is None
    assert bundle.plane == planed / PLANE
    assert bundle.digest == without.digest
    assert set(bundle.manifest.sha256) - set(without.manifest.sha256) == {PLANE}

    (planed / PLANE).write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"plane\.npz must have SHA-256 .* the file was changed or damaged"):
        Bundle.load(planed)


def test_plane_that_the_manifest_does_not_name_is_refused(planed: Path) -> None:
    fields = Bundle.load(planed).manifest.model_dump(exclude={"sha256"})
    (planed / "bundle.json").unlink()

    with pytest.raises(BundleError, match=r"sha256 must list the bundle's own files alone, got plane\.npz too"):
        write_manifest(planed, **fields | {"plane": None})


def test_archive_takes_it_along(planed: Path, tmp_path: Path) -> None:
    archive = package(planed, model_store=tmp_path / "store")
    rebuild(archive, tmp_path / "served")

    with extracted(tmp_path / "served" / Archive("tiny-mda", 1).file) as folder:
        served = Bundle.load(folder)
        assert served.plane is not None
        assert served.plane.read_bytes() == (planed / PLANE).read_bytes()


def test_plane_of_the_features_tells_where_images_lie() -> None:
    features = gmm_answers(golden_images())["features"].astype(np.float32)
    axes = np.array([[0, 0.6, 0.8], [1, 0, 0]], np.float32)
    centre = np.array([1, 2, 3], np.float32)

    places = plane_of(axes=axes, centre=centre).places(features)

    assert places.dtype == np.float32
    by_hand = [(0.6 * (z[1] - 2) + 0.8 * (z[2] - 3), z[0] - 1) for z in features]
    np.testing.assert_allclose(places, by_hand, rtol=1e-5, atol=1e-5)


# How it is made


def test_axes_are_the_principal_components() -> None:
    rng = np.random.default_rng(5)
    features = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 4

    projection = projection_of(features)

    pca = PCA(2).fit(features)
    np.testing.assert_allclose(projection.centre, pca.mean_)
    np.testing.assert_allclose(np.abs((projection.axes * pca.components_).sum(1)), 1)
    assert projection.share == pytest.approx(pca.explained_variance_ratio_.sum())


def test_two_features_are_as_they_are_and_one_lies_on_a_line() -> None:
    assert projection_of(np.ones((3, 2))).axes.tolist() == [[1, 0], [0, 1]]
    assert projection_of(np.ones((3, 1))).axes.tolist() == [[1], [0]]
    assert projection_of(np.ones((3, 1))).share is None


def test_ellipses_are_weighted_means_and_covariances() -> None:
    places = np.array([[0.0, 0], [2, 0], [0, 4], [9, 9]])
    labels = np.array([0, 0, 0, 1])
    responsibilities = np.zeros((4, 2, 2))
    responsibilities[:3, 0] = [[1, 0], [0.5, 0.5], [0.5, 0.5]]
    responsibilities[3, 1] = [1, 0]
    responsibilities[:3, 1], responsibilities[3, 0] = 7, 7  # of other classes than their own: of no account

    means, covariances, weights = ellipses(places, labels, responsibilities)

    np.testing.assert_allclose(means[0], [[0.5, 1], [1, 2]])
    np.testing.assert_allclose(weights, [[2 / 3, 1 / 3], [1, 0]])
    for k in range(2):
        of_numpy = np.cov(places[:3].T, aweights=responsibilities[:3, 0, k], ddof=0)
        np.testing.assert_allclose(covariances[0, k], of_numpy, atol=1e-12)
    assert means[1].tolist() == [[9, 9], [0, 0]]
    assert covariances[1].any() == False  # noqa: E712


def test_points_are_held_out_images_and_ellipses_are_of_training_images(bundle: Bundle, run: Run) -> None:
    images = images_of(run, Sources())
    assert bundle.plane is not None
    plane, info = Plane.read(bundle.plane), bundle.manifest.plane

    held_out, training = images.streamed("held_out"), images.streamed("train")
    assert info is not None
    assert info.images == len(plane.points) == len(held_out)
    assert plane.labels.tolist() == held_out.labels.tolist()
    places = plane.places(features_of(bundle, held_out.images)["features"])
    np.testing.assert_allclose(plane.points, places, atol=1e-3 * np.abs(places).max())
    pca = PCA(2).fit(features_of(bundle, training.images)["features"])
    np.testing.assert_allclose(np.abs((plane.axes * pca.components_).sum(1)), 1, atol=1e-3)
    assert info.explained == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-3)


def test_ellipses_are_near_the_heads_own_gaussians(bundle: Bundle, run: Run) -> None:
    assert bundle.plane is not None
    plane, fitted = Plane.read(bundle.plane), gaussians_of(run.load_classifier().head)
    assert fitted is not None

    own = (fitted.means - plane.centre) @ plane.axes.T
    spread = plane.points.std(0)
    assert (np.abs(plane.means - own)[plane.weights > 0.1] / spread).max() < 0.1
    np.testing.assert_allclose(plane.weights, fitted.weights, atol=0.05)
    projected = plane.axes @ fitted.covariances @ plane.axes.T
    widths, own_widths = (np.sqrt(np.linalg.det(part)) for part in (plane.covariances, projected))
    assert np.median(np.abs(np.log(widths / own_widths))) < 0.3


def test_many_images_are_a_sample_with_every_class_in_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "POINTS", 50)
    monkeypatch.setattr(making, "TRAINING_IMAGES", 200)
    images = LabelledImages(digits(), split(digits(), validation=0, test=0.2, seed=0, held_out=0.2))

    wanted = plane_images(images, held_out_images(images, None))

    assert len(wanted.points) == 50
    assert len(wanted.train) == 200
    assert wanted.points.labels.bincount(minlength=10).min() >= 4
    held_out = {image.numpy().tobytes() for image in images.streamed("held_out").images}
    assert {image.numpy().tobytes() for image in wanted.points.images} <= held_out

    monkeypatch.setattr(making, "TRAINING_PIXELS", 64 * 30)
    assert len(plane_images(images, None).train) == 30


def test_bundle_without_held_out_images_shows_those_of_the_test_split() -> None:
    images = LabelledImages(digits(), split(digits(), validation=0, test=0.2, seed=0))

    assert plane_images(images, None).points.labels.tolist() == images.streamed("test").labels.tolist()


def test_head_without_responsibilities_has_points_and_no_ellipses(tmp_path: Path) -> None:
    recipe = small_recipe(head=HeadSpec(kind="softmax").model_dump(exclude_none=True), fit={"epochs": 1})
    run = Run.create("digits", recipe, "one", tmp_path / "runs")
    train(run, Sources(), CPU)

    bundle = export(run, Sources(), tmp_path / "digits" / "1")

    assert bundle.plane is not None
    plane = Plane.read(bundle.plane)
    assert plane.weights.shape == (10, 0)
    assert plane.means.shape == (10, 0, 2)
    assert len(plane.points) == len(images_of(run, Sources()).splits["test"])


# Of a bundle that is there


def test_only_the_plane_and_the_manifest_of_a_bundle_are_changed(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.path, tmp_path / "digits" / "1"))
    fields = bundle.manifest.model_dump(exclude={"sha256", "plane"})
    (folder / PLANE).unlink()
    (folder / "bundle.json").unlink()
    write_manifest(folder, **fields)
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("a report")
    before = {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    info = add_plane(folder, images_of(run, Sources()))

    after = {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert after.keys() - before.keys() == {PLANE}
    assert [name for name in before if before[name] != after[name]] == ["bundle.json"]
    added = Bundle.load(folder)
    assert added.manifest == bundle.manifest  # the same plane as the export made
    assert added.digest == bundle.digest
    assert info == added.manifest.plane


def test_variants_made_anew_keep_the_plane(bundle: Bundle, run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.path, tmp_path / "digits" / "1"))

    renewed = renew_variants(folder, ["float16"], images_of(run, Sources()))

    assert renewed.manifest.plane == bundle.manifest.plane
    assert renewed.manifest.sha256[PLANE] == bundle.manifest.sha256[PLANE]


def test_command_needs_the_images_that_the_model_was_trained_on(tmp_path: Path) -> None:
    images = write_digit_folder(tmp_path / "images")
    run = Run.create("some", small_recipe(data=FOLDER_DATA, fit={"epochs": 1}), "one", tmp_path / "runs")
    train(run, Sources(folder=images), CPU)
    folder = export(run, Sources(folder=images), tmp_path / "some" / "1").path

    done = CliRunner().invoke(app, ["plane", str(folder), "--data", str(images)])
    assert done.exit_code == 0
    assert "plane.npz, 30 images, with" in done.output.replace("\n", " ")

    next(images.rglob("*.png")).unlink()
    refused = CliRunner().invoke(app, ["plane", str(folder), "--data", str(images)])
    assert str(refused.exception) == f"images must be those that {folder} was trained and measured on, got others"


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_bundle_has_one_that_fits_it(name: str) -> None:
    bundle = Bundle.load(ROOT / "model_store" / name / "1")
    head, info = bundle.manifest.head, bundle.manifest.plane
    assert bundle.plane is not None
    assert info is not None
    assert info.explained is not None
    plane = Plane.read(bundle.plane)

    assert plane.weights.shape == (head.classes, head.components)
    assert plane.centre.shape == (head.dim,)
    assert set(plane.labels.tolist()) == set(range(head.classes))
    assert len(plane.points) == info.images <= 2_000
    middles = np.stack([plane.points[plane.labels == label].mean(0) for label in range(head.classes)])
    of_ellipses = (plane.weights[:, :, None] * plane.means).sum(1)
    assert np.abs(middles - of_ellipses).max() < 0.5 * plane.points.std()
    answered = bundle.read_golden()[1]["features"]
    assert np.isfinite(plane.places(answered)).all()
