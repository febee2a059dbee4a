"""Examples of components: which images are shown, how large the file is, what a server reads of it."""

import base64
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from conftest import encoded, openapi
from openapi_schema_validator import OAS31Validator
from PIL import Image
from training_samples import FOLDER_DATA, digits, small_recipe, write_digit_folder

from serving import examples as serving_examples
from serving.answer_size import AnswerSizes
from serving.bundle import Bundle, write_manifest
from serving.errors import BadParameter, BundleError
from serving.examples import Examples, read_examples
from serving.limits import Limits
from serving.parameters import Options
from serving.predictor import Predictor
from serving.request import Request
from serving.respond import EACH
from training import examples as training_examples
from training.classifier import Architecture, Classifier, build_classifier
from training.data import Dataset, Sources
from training.examples import ComponentExamples, find_examples, thumbnail, write_examples
from training.export import export
from training.images import LabelledImages, images_of
from training.recipe import EncoderSpec, HeadSpec
from training.refit import refit
from training.refit_spec import RefitSpec
from training.run import Run
from training.splits import split
from training.train import train
from training.variants import renew_variants

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> LabelledImages:
    """Digits 0 and 1, with copies of the first ones."""
    chosen = torch.cat([(digits().labels == label).nonzero()[:120, 0] for label in (0, 1)])
    chosen = torch.cat([chosen, chosen[:40]])
    dataset = Dataset("some", digits().images[chosen], digits().labels[chosen], ("0", "1"), digits().input)
    return LabelledImages(dataset, split(dataset, validation=0.1, test=0.2, seed=0))


@pytest.fixture(scope="module")
def classifier(images: LabelledImages) -> Classifier:
    """Two components a class on the pixels."""
    torch.manual_seed(0)
    train = images.part("train", CPU)
    plain = build_classifier(Architecture((1, 8, 8), 2, EncoderSpec(kind="none"), HeadSpec(kind="lda")))
    plain.learn_normalisation(train.images)
    spec = RefitSpec(dim=6, components=2, ridge=0.1, restarts=1)
    return refit(plain, spec, train.images, train.labels, seed=0)


def opened(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image))


# What is shown


def test_nearest_images_are_those_of_the_greatest_density_in_the_component(
    classifier: Classifier, images: LabelledImages
) -> None:
    train = images.part("train", CPU)
    with torch.no_grad():
        joints = classifier(train.images).component_log_joints
    assert joints is not None

    found = find_examples(classifier, images, "nearest", CPU)

    assert [(one.label, one.component) for one in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for one in found:
        own = (train.labels == one.label) & (joints[:, one.label].argmax(1) == one.component)
        order = joints[own, one.label, one.component].argsort(descending=True)
        ranked = list(dict.fromkeys(image.numpy().tobytes() for image in train.images[own][order]))
        assert [image.tobytes() for image in one.nearest] == ranked[:3]


def test_mean_is_that_of_the_components_images(classifier: Classifier, images: LabelledImages) -> None:
    train = images.part("train", CPU)
    with torch.no_grad():
        joints = classifier(train.images).component_log_joints
    assert joints is not None

    for one in find_examples(classifier, images, "means", CPU):
        own = train.images[(train.labels == one.label) & (joints[:, one.label].argmax(1) == one.component)]
        assert one.nearest == ()
        if len(own) < 10:
            assert one.mean is None
        else:
            assert one.mean is not None
            np.testing.assert_allclose(one.mean, own.double().mean(0), atol=0.51)


def test_mean_of_few_images_shows_none_of_them(
    classifier: Classifier, images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_examples, "FEWEST_OF_A_MEAN", 10_000)

    assert all(one.mean is None for one in find_examples(classifier, images, "means", CPU))


def test_head_without_densities_has_no_examples(images: LabelledImages) -> None:
    softmax = build_classifier(Architecture((1, 8, 8), 2, EncoderSpec(kind="none"), HeadSpec(kind="softmax")))

    with pytest.raises(ValueError, match=r"^examples must be of a head with densities, lda or mda, got softmax$"):
        find_examples(softmax, images, "means", CPU)


# Thumbnails


def test_small_images_are_kept_to_the_pixel() -> None:
    pixels = digits().images[5].numpy()

    assert np.array_equal(np.asarray(opened(thumbnail(pixels, 96)).convert("L")), pixels[0])


def test_large_images_become_small_and_keep_their_shape_and_colour() -> None:
    pixels = np.zeros((3, 200, 300), np.uint8)
    pixels[0, :, 150:] = 255

    image = opened(thumbnail(pixels, 96))

    assert image.size == (96, 64)
    colours = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(colours[:, -20:] - [255, 0, 0]).max() < 25
    assert colours[:, :20].max() < 25


def noise(side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, side, side), dtype=np.uint8)


def test_thumbnails_are_smaller_where_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [ComponentExamples(0, k, noise(96, k), ()) for k in range(4)]
    most = sum(len(thumbnail(one.mean, 64)) for one in found if one.mean is not None) + 4 * 200
    monkeypatch.setattr(training_examples, "MAX_BYTES", most)

    info = write_examples(found, tmp_path / "examples.zip")

    assert info.side == 64
    assert (tmp_path / "examples.zip").stat().st_size <= most
    monkeypatch.setattr(training_examples, "MAX_BYTES", 300)
    with pytest.raises(ValueError, match=r"^examples must take at most 300 bytes, got \d+ for 4 thumbnails of 32 pixe"):
        write_examples(found, tmp_path / "examples.zip")


def test_file_is_the_same_for_the_same_examples(tmp_path: Path) -> None:
    found = [ComponentExamples(0, 0, noise(40, 0), (noise(40, 1), noise(40, 2)))]

    infos = [write_examples(found, tmp_path / name) for name in ("a.zip", "b.zip")]

    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert infos[0].model_dump() == {"nearest": 2, "side": 40}
    with zipfile.ZipFile(tmp_path / "a.zip") as entries:
        assert entries.namelist() == ["0/0/mean.webp", "0/0/nearest-1.webp", "0/0/nearest-2.webp"]


# In a bundle


@pytest.fixture
def bundle(bundle_dir: Path, tmp_path: Path) -> Path:
    """A bundle of four classes with two components each, with examples of two of them."""
    folder = Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))
    found = [
        ComponentExamples(0, 1, noise(8, 0), (noise(8, 1), noise(8, 2), noise(8, 3))),
        ComponentExamples(3, 0, None, (noise(8, 4),)),
        ComponentExamples(3, 1, noise(8, 5), ()),
    ]
    rewrite(folder, examples=write_examples(found, folder / "examples.zip"))
    return folder


def rewrite(folder: Path, **changes: object) -> None:
    """Write a bundle's manifest anew, digests included."""
    fields = json.loads((folder / "bundle.json").read_text())
    del fields["sha256"]
    (folder / "bundle.json").unlink()
    write_manifest(folder, **fields | changes)


def shown(text: str) -> np.ndarray:
    return np.asarray(opened(base64.b64decode(text)).convert("RGB")).transpose(2, 0, 1)


def test_server_reads_what_was_written(bundle: Path) -> None:
    examples = read_examples(Bundle.load(bundle))

    assert examples is not None
    first = examples.of(0, 1)
    assert isinstance(first["mean"], str)
    np.testing.assert_array_equal(shown(first["mean"]), noise(8, 0))
    assert [shown(text).tolist() for text in first["nearest"]] == [noise(8, seed).tolist() for seed in (1, 2, 3)]
    assert examples.of(3, 0).keys() == {"nearest"}
    assert examples.of(3, 1).keys() == {"mean"}
    assert examples.of(1, 0) == {}
    assert examples.longest() == first
    assert Examples({}, {}).longest() == {}


def noises(count: int = 64) -> list[bytes]:
    """Image files of noise, from dark to bright, on whichever side."""
    rng = np.random.default_rng(0)
    ramps = rng.normal(size=(count, 8, 1)) * np.linspace(-1, 1, 8) + rng.normal(size=(count, 1, 8)).transpose(0, 2, 1)
    return [encoded((128 + 60 * ramp).clip(0, 255).astype(np.uint8)) for ramp in ramps]


def test_answers_show_the_components_of_the_two_likeliest_classes(bundle: Path) -> None:
    files, labels = noises(), Bundle.load(bundle).manifest.labels
    (first,) = Predictor.open(bundle).predict(files[:1])
    assert isinstance(first, dict)
    found = ComponentExamples(labels.index(first["label"]), first["component"], noise(8, 0), (noise(8, 1), noise(8, 2)))
    rewrite(bundle, examples=write_examples([found], bundle / "examples.zip"))
    predictor = Predictor.open(bundle)

    answers = predictor.predict(files, Options(top_k=4, returns=frozenset({"examples"})))

    examples = read_examples(Bundle.load(bundle))
    assert examples is not None
    for answer in answers:
        assert isinstance(answer, dict)
        for shown_of, one in zip(answer["examples"], answer["top_k"][:2], strict=True):
            expected = examples.of(labels.index(one["label"]), one["component"])
            assert shown_of == {"label": one["label"], "component": one["component"], **expected}
    (only_one,) = predictor.predict(files[:1], Options(top_k=1, returns=frozenset({"examples"})))
    (plain,) = predictor.predict(files[:1])
    assert isinstance(only_one, dict)
    assert [one.keys() for one in only_one["examples"]] == [{"label", "component", "mean", "nearest"}]
    assert len(only_one["examples"][0]["nearest"]) == 2
    assert isinstance(plain, dict)
    assert "examples" not in plain
    schema = {"$ref": "#/components/schemas/Answer", "components": openapi()["components"]}
    OAS31Validator(schema).validate(only_one)


def test_examples_are_refused_by_a_model_that_has_none(bundle_dir: Path) -> None:
    with pytest.raises(
        BadParameter, match=r"^return must be without examples, as tiny-mda has none: export it anew wi"
    ):
        Predictor.open(bundle_dir).predict(
            [encoded(np.zeros((8, 8), np.uint8))], Options(returns=frozenset({"examples"}))
        )


def test_length_of_answers_with_examples_is_known_before(bundle: Path) -> None:
    predictor = Predictor.open(bundle)
    options = Options(returns=frozenset({"examples", "probabilities"}))
    files = noises()
    request = Request(files, options, EACH)

    head, each = AnswerSizes(predictor.bundle.manifest, Limits(), predictor.examples).of(request)

    _, body = EACH.respond(predictor.predict(files, options))
    longest = max(len(orjson.dumps(answer)) for answer in body["predictions"])
    assert len(orjson.dumps(body)) <= head + each * len(files)
    assert each < 4 * longest
    assert each > AnswerSizes(predictor.bundle.manifest, Limits()).of(request)[1]


def test_file_is_held_to_its_digest(bundle: Path) -> None:
    (bundle / "examples.zip").write_bytes(b"another")

    with pytest.raises(BundleError, match=r"examples\.zip must have SHA-256"):
        Bundle.load(bundle)


def test_bundle_without_examples_has_none(bundle_dir: Path) -> None:
    assert read_examples(Bundle.load(bundle_dir)) is None


@pytest.mark.parametrize(
    ("name", "compression", "problem"),
    [
        ("0/0/mean.png", zipfile.ZIP_STORED, "an entry '0/0/mean.png', or one that is compressed"),
        ("../0/mean.webp", zipfile.ZIP_STORED, "an entry '../0/mean.webp', or"),
        ("0/0/mean.webp", zipfile.ZIP_DEFLATED, "an entry '0/0/mean.webp', or"),
        ("4/0/mean.webp", zipfile.ZIP_STORED, "an entry 4/0/mean.webp of no component"),
        ("0/2/nearest-1.webp", zipfile.ZIP_STORED, "an entry 0/2/nearest-1.webp of no component"),
    ],
)
def test_other_files_are_refused(bundle: Path, name: str, compression: int, problem: str) -> None:
    manifest = Bundle.load(bundle).manifest
    with zipfile.ZipFile(bundle / "examples.zip", "w", compression) as entries:
        entries.writestr(name, b"x" * 100)

    with pytest.raises(BundleError, match=rf"must be a zip file of thumbnails of components, got {problem}"):
        read_examples(Bundle(bundle, manifest))


def test_no_zip_file_and_too_large_a_file_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Bundle.load(bundle).manifest
    (bundle / "examples.zip").write_bytes(b"no zip file")

    with pytest.raises(BundleError, match=r"must be a zip file of thumbnails of components, got File is not a zip"):
        read_examples(Bundle(bundle, manifest))
    monkeypatch.setattr(serving_examples, "MAX_BYTES", 10)
    with pytest.raises(BundleError, match=r"examples\.zip must have at most 10 bytes, got 11$"):
        read_examples(Bundle(bundle, manifest))


def test_export_adds_them_and_variants_keep_them(tmp_path: Path) -> None:
    sources = Sources(folder=write_digit_folder(tmp_path / "digits", per_class=60))
    refitting = {"dim": 4, "components": 2, "ridge": 0.01, "restarts": 1}
    recipe = small_recipe(data=FOLDER_DATA, encoder={"kind": "linear"}, fit={"epochs": 2}, refit=refitting)
    run = Run.create("small", recipe, "a", tmp_path / "runs")
    train(run, sources, CPU)

    plain = export(run, sources, tmp_path / "store" / "plain" / "1")
    bundle = export(run, sources, tmp_path / "store" / "small" / "1", examples="nearest")
    renewed = renew_variants(bundle.path, ["float16"], images_of(run, sources))

    assert plain.manifest.examples is None
    assert not (plain.path / "examples.zip").exists()
    assert bundle.manifest.examples is not None
    assert bundle.manifest.examples.model_dump() == {"nearest": 3, "side": 8}
    assert "examples.zip" in bundle.manifest.sha256
    assert renewed.manifest.examples == bundle.manifest.examples
    assert renewed.manifest.sha256["examples.zip"] == bundle.manifest.sha256["examples.zip"]
    examples = read_examples(renewed)
    assert examples is not None
    pixels = {image.numpy().tobytes() for image in images_of(run, sources).part("train", CPU).images}
    for nearest in examples.nearest.values():
        for one in nearest:
            assert np.asarray(opened(one).convert("L")).tobytes() in pixels
