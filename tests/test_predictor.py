import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COMPONENT_NAMES, LABELS, ROOT, SIZE, encoded, gmm_answers, golden_images, held_out, tampered

from serving.bundle import Bundle, graph_files, held_out_file, write_manifest
from serving.errors import (
    BadParameter,
    BadRequest,
    BundleError,
    ImageError,
    ImageTooLarge,
    ServingError,
    UnsupportedImage,
)
from serving.intake import PHOTO_PIXELS
from serving.limits import Limits
from serving.parameters import Options
from serving.predictor import Predictor
from serving.respond import encode


@pytest.fixture(scope="module", params=["onnx", "torchscript"])
def predictor(request: pytest.FixtureRequest, bundle_dir: Path) -> Predictor:
    return Predictor.open(bundle_dir, request.param, threads=1)


def test_outputs_are_the_densities(predictor: Predictor) -> None:
    images = np.random.default_rng(5).integers(0, 256, (9, 1, SIZE, SIZE), dtype=np.uint8)

    outputs = predictor.infer(images)
    for name, expected in gmm_answers(images).items():
        assert outputs[name] == pytest.approx(expected, rel=1e-4, abs=1e-5), name


def test_answers_are_made_of_the_outputs(predictor: Predictor, images: list[bytes]) -> None:
    expected = gmm_answers(np.stack([predictor.decode(image) for image in images]))

    for n, answer in enumerate(predictor.predict(images)):
        assert not isinstance(answer, ServingError)
        winner = int(expected["posterior"][n].argmax())
        assert answer["label"] == LABELS[winner]
        assert answer["probability"] == pytest.approx(expected["posterior"][n, winner], abs=1e-5)
        assert answer["component"] == expected["responsibilities"][n, winner].argmax()
        assert answer["log_density"] == pytest.approx(expected["log_density"][n], abs=1e-4)


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_held_out_images_say_how_typical_an_image_is_and_which_labels_are_possible(
    typical_dir: Path, images: list[bytes], runtime: Any
) -> None:
    predictor = Predictor.open(typical_dir, runtime, threads=1)
    predictor.warm_up()
    expected = gmm_answers(np.stack([predictor.decode(image) for image in images]))
    p_values = held_out().typicality(expected["log_density"] / 3)
    possible = held_out().possible(expected["posterior"], 0.8)

    answers = predictor.predict(images, Options(coverage=0.8))
    for n, answer in enumerate(answers):
        assert isinstance(answer, dict)
        assert answer["typicality"] == pytest.approx(p_values[n], abs=1 / 400)
        assert answer["flags"] == (["atypical"] if answer["typicality"] < 0.01 else [])
        likeliest = np.argsort(-expected["posterior"][n])
        assert answer["labels_at"] == {"coverage": 0.8, "set": [LABELS[c] for c in likeliest if possible[n, c]]}
        name = COMPONENT_NAMES.get(answer["label"], {}).get(answer["component"])
        assert answer.get("component_name") == name


def test_what_a_model_cannot_tell_refuses_a_request_before_anything_is_decoded(
    predictor: Predictor, images: list[bytes]
) -> None:
    refused, answered = predictor.predict_together(
        [([images[0], b"text"], Options(coverage=0.9)), ([images[1]], Options())]
    )

    assert isinstance(refused, BadParameter)
    assert answered == predictor.predict([images[1]])
    with pytest.raises(BadParameter, match=r"^coverage must be left out, as tiny-mda has no held-out images"):
        predictor.predict([images[0]], Options(coverage=0.9))


def test_a_variant_compares_with_what_it_has_answered_itself(typical_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(typical_dir, tmp_path / "1")
    manifest = Bundle.load(folder).manifest.model_dump(exclude={"sha256"})
    (folder / "bundle.json").unlink()
    for source, target in zip(graph_files("float32"), graph_files("int8"), strict=True):
        shutil.copy(folder / source, folder / target)
    of_variant = replace(held_out(), typicality_scores=held_out().typicality_scores + np.float32(1))
    of_variant.write(folder / held_out_file("int8"))
    write_manifest(folder, **manifest | {"variants": {"int8": {"accuracy": 1.0}}})

    found = [Predictor.open(folder, precision=precision).held_out for precision in ("float32", "int8")]
    for table, expected in zip(found, (held_out(), of_variant), strict=True):
        assert table is not None
        np.testing.assert_array_equal(table.typicality_scores, expected.typicality_scores)


OLD = [
    path.parent
    for path in sorted(ROOT.glob("model_store/*/*/bundle.json"))
    if b'"held_out": {' not in path.read_bytes()
]


@pytest.mark.skipif(not OLD, reason="all bundles in model_store have held-out images")
@pytest.mark.parametrize("folder", OLD, ids=lambda folder: folder.parent.name)
def test_committed_bundles_without_held_out_images_answer_as_ever(folder: Path) -> None:
    bundle = Bundle.load(folder)
    outputs = {name: values.astype(np.float32) for name, values in bundle.read_golden()[1].items()}

    for answer in encode(outputs, bundle.manifest, [Options()] * len(outputs["posterior"])):
        of_components = ["component", "component_probability"] if "responsibilities" in outputs else []
        density = ["log_density"] if "log_density" in outputs else []
        components = ["components"] if of_components else []
        head = ["label", "probability", *of_components]
        assert list(answer) == [*head, "top_k", "probabilities", *components, *density, "model"]
        assert list(answer["top_k"][0]) == head


def test_a_bad_image_gets_its_error_and_spares_its_neighbours(predictor: Predictor, images: list[bytes]) -> None:
    mixed = [images[0], b"text", images[1], b"", images[2][:50], images[3]]

    results = predictor.predict(mixed)
    kinds = [type(result) for result in results]
    assert kinds == [dict, UnsupportedImage, dict, ImageError, ImageError, dict]
    assert [results[0], results[2], results[5]] == predictor.predict([images[0], images[1], images[3]])


def test_nothing_but_bad_images(predictor: Predictor) -> None:
    assert [type(result) for result in predictor.predict([b"", b"text"])] == [ImageError, UnsupportedImage]


def test_an_error_in_place_of_an_image_is_passed_through(predictor: Predictor, images: list[bytes]) -> None:
    error = BadRequest("not even read")

    results = predictor.predict([error, images[0]])
    assert results[0] is error
    assert results[1:] == predictor.predict([images[0]])


def test_requests_answered_together_keep_their_own_options(predictor: Predictor, images: list[bytes]) -> None:
    brief = Options(top_k=1, returns=frozenset())

    together = predictor.predict_together([(images[:2], brief), ([b""], Options()), (images[2:5], Options())])
    assert together[0] == predictor.predict(images[:2], brief)
    assert [type(result) for result in together[1]] == [ImageError]
    assert together[2] == predictor.predict(images[2:5])


def test_photos_are_answered_in_order_though_decoded_side_by_side(bundle_dir: Path, images: list[bytes]) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (4, 300, 300), dtype=np.uint8)
    photos = [encoded(pixels) for pixels in noise]
    assert noise[0].size > PHOTO_PIXELS
    mixed = [photos[0], images[0], photos[1][:-9], photos[2], BadRequest("not even read"), photos[3], b""]

    answers = Predictor.open(bundle_dir, threads=2).predict(mixed)

    alone = Predictor.open(bundle_dir, threads=1)
    for image, answer in zip(mixed, answers, strict=True):
        [expected] = alone.predict([image])
        if isinstance(expected, ServingError) or isinstance(answer, ServingError):
            assert (type(answer), str(answer)) == (type(expected), str(expected))
        else:
            assert answer["label"] == expected["label"]
            assert answer["log_density"] == pytest.approx(expected["log_density"], abs=1e-4)


def test_large_batches_are_cut(bundle_dir: Path) -> None:
    images = np.random.default_rng(5).integers(0, 256, (7, 1, SIZE, SIZE), dtype=np.uint8)

    cut = Predictor(Bundle.load(bundle_dir), threads=1, max_batch=3).infer(images)
    whole = Predictor(Bundle.load(bundle_dir), threads=1).infer(images)
    for name in whole:
        assert cut[name] == pytest.approx(whole[name], rel=1e-5), name


def test_images_of_any_size_are_fitted(predictor: Predictor) -> None:
    [answer] = predictor.predict([encoded(np.full((30, 50, 3), 128, dtype=np.uint8), "JPEG")])
    [plain] = predictor.predict([encoded(np.full((SIZE, SIZE), 128, dtype=np.uint8))])

    assert answer == plain


def test_limits_are_the_ones_given(bundle_dir: Path, images: list[bytes]) -> None:
    [result] = Predictor(Bundle.load(bundle_dir), limits=Limits(max_pixels=63)).predict([images[0]])

    assert isinstance(result, ImageTooLarge)


def test_both_runtimes_and_both_heads_warm_up(predictor: Predictor, softmax_dir: Path) -> None:
    predictor.warm_up()
    Predictor.open(softmax_dir, threads=1).warm_up()


@pytest.mark.parametrize("name", ["posterior", "responsibilities", "log_density", "features"])
def test_a_runtime_that_computes_something_else_must_not_serve(bundle_dir: Path, tmp_path: Path, name: str) -> None:
    other = tampered(bundle_dir, tmp_path / "1", **{name: gmm_answers(golden_images())[name] + 0.5})

    with pytest.raises(BundleError, match=rf"^{name} must be within .* of .*golden\.npz, got a difference of "):
        Predictor.open(other, threads=1).warm_up()


def test_not_a_number_is_something_else(bundle_dir: Path, tmp_path: Path) -> None:
    other = tampered(bundle_dir, tmp_path / "1", log_density=np.full(7, np.nan))

    with pytest.raises(BundleError, match=r"^log_density must be within .* got a difference of nan$"):
        Predictor.open(other, threads=1).warm_up()


def test_the_difference_that_is_named_is_one_that_is_not_allowed(bundle_dir: Path, tmp_path: Path) -> None:
    golden = gmm_answers(golden_images())["features"]
    large, small = np.argmax(np.abs(golden)), np.argmin(np.abs(golden))
    wrong = golden.copy()
    wrong.flat[large] *= 1.001  # allowed: a hundredth, and a thousandth of the value
    wrong.flat[large] += 0.009
    wrong.flat[small] += 0.0125
    other = tampered(bundle_dir, tmp_path / "1", features=wrong)

    with pytest.raises(BundleError, match=r", got a difference of 0\.0125$") as info:
        Predictor.open(other, threads=1).warm_up()
    allowed = 0.01 + 1e-3 * abs(wrong.flat[small])
    assert str(info.value).startswith(f"features must be within {allowed:.3g} of {wrong.flat[small]:.6g} as in ")


def test_an_answer_of_another_shape_must_not_serve(bundle_dir: Path, tmp_path: Path) -> None:
    other = tampered(bundle_dir, tmp_path / "1", posterior=np.zeros((7, 9)))

    with pytest.raises(BundleError, match=r"^posterior must have shape \(7, 9\) as in .*, got \(7, 4\)$"):
        Predictor.open(other, threads=1).warm_up()
