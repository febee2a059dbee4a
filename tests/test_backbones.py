"""Frozen backbones, judged by torchvision's and timm's own models, and by scikit-learn's LDA on their features.

The weights are random and written by the tests; the images are coloured squares in CIFAR-10's own files.
"""

import hashlib
import io
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn
from torchvision import datasets, transforms
from training_samples import logged_epochs, same_weights, small_recipe
from typer.testing import CliRunner

from serving.bundle import Bundle, InputSpec
from serving.decode import decode
from serving.predictor import Predictor
from serving.preprocess import to_input
from serving.runtimes import onnxruntime
from training.__main__ import app
from training.analysis.evidence import gather
from training.backbones import normalisation_of
from training.classifier import Architecture, build_classifier
from training.data import Sources, as_served
from training.evaluate import eager, measure, quickly, run_graph
from training.export import export, golden_images, write_graphs
from training.images import load_images, sources_of
from training.recipe import EncoderSpec, HeadSpec, Recipe, RecipeError, load_recipe
from training.report.facts import facts_in_words, run_facts
from training.run import Run, RunError
from training.train import train
from training.weights import WeightsError, load_backbone

CPU = torch.device("cpu")
CLASSES = ("red", "green", "blue")
TRAIN, TEST = 36, 12  # images
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # as the notebooks type them


@pytest.fixture(scope="module", autouse=True)
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """48 noisy images of three colours, as torchvision's CIFAR-10 lies on disk."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("cifar")
    base = root / datasets.CIFAR10.base_folder
    base.mkdir()
    for part, count in (("train", TRAIN), ("test", TEST)):
        labels = np.arange(count) % 3
        pixels = rng.integers(0, 160, (count, 3, 32, 32), dtype=np.uint8)
        pixels[np.arange(count), labels, 8:24, 8:24] += 8
        (base / part).write_bytes(pickle.dumps({"data": pixels.reshape(count, -1), "labels": labels.tolist()}))
    (base / "meta").write_bytes(pickle.dumps({"names": list(CLASSES)}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.CIFAR10, "train_list", [["train", None]])  # None: no checksum of the real files
        patch.setattr(datasets.CIFAR10, "test_list", [["test", None]])
        patch.setattr(datasets.CIFAR10, "meta", {"filename": "meta", "key": "names", "md5": None})
        yield root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's own ResNet-18, classifier included, as its download holds it."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def sources(cifar: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(cifar, weights=weights, cache=tmp_path_factory.mktemp("cache"))


def recipe_of(**sections: dict[str, Any]) -> Recipe:
    """A recipe of few epochs on a ResNet-18."""
    base: dict[str, dict[str, Any]] = {
        "data": {"name": "cifar10", "validation": 0.25},
        "encoder": {"kind": "resnet18", "dim": None, "width": 64},
        "head": {"kind": "softmax"},
        "fit": {"epochs": 3, "batch_size": 16, "optimizer": "adam", "lr": 0.01, "schedule": "cosine"},
    }
    return small_recipe(**{name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}})


LDA: dict[str, dict[str, Any]] = {
    "head": {"kind": "lda"},
    "fit": {"epochs": 0},
    "refit": {"head": "lda", "features": "output", "covariance": "full", "ridge": 1.0},
}


@pytest.fixture(scope="module")
def lda(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of LDA on all 512 features; read only."""
    return finished(recipe_of(**LDA, calibration={}), sources, tmp_path_factory.mktemp("lda"))


@pytest.fixture(scope="module")
def bundle(lda: Run, sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The run's bundle; read only."""
    return export(lda, sources, tmp_path_factory.mktemp("store") / "lda" / "1")


def finished(recipe: Recipe, sources: Sources, runs: Path, run_id: str = "one") -> Run:
    run = Run.create("backbone", recipe, run_id, runs)
    train(run, sources, CPU)
    return run


def torchvision_features(images: torch.Tensor, weights: Path) -> np.ndarray:
    """Features (N, 512) as the notebook makes them: torchvision's transforms and model, fc replaced by nothing."""
    preprocess = transforms.Compose([transforms.Resize(224), transforms.ToTensor(), transforms.Normalize(*IMAGENET)])
    model = torchvision.models.resnet18(weights=None)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.fc = nn.Identity()
    batch = torch.stack([preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    with torch.inference_mode():
        return model.eval()(batch).numpy()


# Weights


def test_backbone_is_frozen_and_in_evaluation_mode(weights: Path) -> None:
    network = load_backbone("resnet18", weights)

    assert not network.training
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_vit_answers_what_timms_own_does(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = timm.create_model("vit_small_patch16_224", num_classes=10).eval()
    file = tmp_path / f"vit{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(own.state_dict(), file)
    images = torch.randn(2, 3, 224, 224)

    with torch.inference_mode():
        features = load_backbone("vit-s16", file)(images)
        expected = own.forward_features(images)[:, 0]

    assert features.shape == (2, 384)
    torch.testing.assert_close(features, expected)


def test_normalisation_is_that_of_the_weights() -> None:
    of_resnet, of_vit = normalisation_of("resnet18"), normalisation_of("vit-s16")

    for found, expected in zip(of_resnet, IMAGENET, strict=True):
        torch.testing.assert_close(found.flatten() / 255, torch.tensor(expected))
    assert torch.equal(of_vit[0], torch.full((3, 1, 1), 127.5))
    assert torch.equal(of_vit[1], torch.full((3, 1, 1), 127.5))


def test_state_dict_without_batch_norms_counters_is_read(weights: Path, tmp_path: Path) -> None:
    """Files older than the counters, torchvision's published one among them, hold none."""
    state = torch.load(weights, weights_only=True)
    file = tmp_path / "old.pth"
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, file)

    assert same_weights(load_backbone("resnet18", file), load_backbone("resnet18", weights))


def test_weights_of_something_else_name_the_file_and_the_keys(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    del state["conv1.weight"]
    state["bn1.weight"] = torch.ones(3)
    state |= {f"extra.{number}": torch.ones(1) for number in range(7)}
    file = tmp_path / "other.pth"
    torch.save(state, file)

    with pytest.raises(WeightsError) as caught:
        load_backbone("resnet18", file)

    assert str(caught.value) == (
        f"{file} must hold the weights of resnet18, got no keys conv1.weight; the unknown keys extra.0, extra.1, "
        "extra.2, extra.3, extra.4 and 2 more; the shapes bn1.weight (3,) instead of (64,)"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.pth", b"no weights", "must be a state dict that torch or safetensors reads, got "),
        ("empty.pth", b"", "must be a state dict that torch or safetensors reads, got "),
        ("text.safetensors", b"no weights", "must be a state dict that torch or safetensors reads, got "),
        ("code.pth", pickle.dumps(print), "must be a state dict that torch or safetensors reads, got "),
        ("epoch.pth", {"epoch": 3}, "must be a state dict, tensors by name, got dict of other things"),
        ("none.pth", None, "must be a readable file of weights, got [Errno 2] "),
    ],
)
def test_file_that_is_no_state_dict_is_refused(name: str, content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)

    with pytest.raises(WeightsError) as caught:
        load_backbone("resnet18", file)

    assert str(caught.value).startswith(f"{file} {message}")


@pytest.mark.parametrize(
    ("kind", "seam", "address"),
    [
        ("resnet18", "torch.hub.urlopen", "https://download.pytorch.org/models/resnet18-f37072fd.pth"),
        (
            "vit-s16",
            "timm.models._builder.load_state_dict_from_hf",
            "https://huggingface.co/timm/vit_small_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors",
        ),
    ],
)
def test_failed_download_says_what_to_fetch(
    kind: str, seam: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(seam, no_network)

    with pytest.raises(WeightsError) as caught:
        load_backbone(kind)

    assert str(caught.value) == (
        f"the weights of {kind} must be at hand, got a failed download (no route to host): "
        f"fetch {address} and name it with --weights FILE"
    )


def test_weights_for_an_encoder_without_are_refused(sources: Sources, tmp_path: Path) -> None:
    run = Run.create("small", small_recipe(), "one", tmp_path)

    with pytest.raises(
        WeightsError, match=r"^--weights must go with the encoder efficientnet-lite0, .* or timm:NAME, got .* six-conv$"
    ):
        train(run, sources, CPU)
    with pytest.raises(WeightsError, match=r"^--weights must be a file of weights, got lost.pth, which is no file$"):
        train(replace(run, recipe=recipe_of()), replace(sources, weights=Path("lost.pth")), CPU)


def test_command_refuses_weights_before_it_makes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(app, ["train", "digits-mda", "--weights", "some.pth"])

    assert isinstance(result.exception, WeightsError)
    assert str(result.exception) == (
        "--weights must go with the encoder efficientnet-lite0, efficientnet-lite1, efficientnet-lite2, resnet18, "
        "vit-s16 or timm:NAME, got the encoder six-conv"
    )
    assert list(tmp_path.iterdir()) == []


# Images


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_made_into_what_a_server_makes_of_their_files(channels: int) -> None:
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (3, channels, 32, 20), dtype=np.uint8))
    spec = InputSpec(channels=3, height=24, width=24)

    served = as_served(images, spec)

    for image, found in zip(images, served, strict=True):
        pixels = image.permute(1, 2, 0).numpy() if channels == 3 else image[0].numpy()
        assert np.array_equal(found, to_input(decode(png(pixels), channels=3), spec))
    assert as_served(served, spec) is served


def test_colour_images_are_not_made_gray() -> None:
    with pytest.raises(ValueError, match=r"^image must be uint8 \(H, W, 1\), got uint8 \(8, 8, 3\)$"):
        as_served(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), InputSpec(channels=1, height=4, width=4))


def test_data_set_keeps_its_images_and_is_served_at_the_backbones_size(sources: Sources) -> None:
    dataset = load_images(recipe_of(), sources).dataset

    assert dataset.images.shape == (TRAIN + TEST, 3, 32, 32)
    assert dataset.input == InputSpec(channels=3, height=224, width=224)


# Trainings


def test_lda_agrees_with_scikit_learns_on_the_same_features(lda: Run, sources: Sources) -> None:
    images = load_images(lda.recipe, sources)
    train_part, test = images.part("train", CPU), images.part("test", CPU)
    ours = run_graph(eager(lda.load_classifier(), CPU), test.images, images.dataset.input)["posterior"]
    features = torchvision_features(train_part.images, sources.weights or Path()).astype(np.float64)
    labels = train_part.labels.numpy()
    centred = np.concatenate([features[labels == c] - features[labels == c].mean(0) for c in range(3)])
    ratio = 1.0 * features.var(0).mean() / centred.var(0).mean()  # our floor in units of scikit-learn's shrinkage

    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=ratio / (1 + ratio)).fit(features, labels)

    of_test = torchvision_features(test.images, sources.weights or Path()).astype(np.float64)
    # Their covariance is 1 / (1 + ratio) of ours, their log-odds as many times ours; ours are divided by T as well.
    log_odds = theirs.decision_function(of_test) / (1 + ratio) / lda.load_classifier().temperature
    assert (ours.argmax(1) == theirs.predict(of_test)).all()
    np.testing.assert_allclose(ours, softmax(log_odds, axis=1), atol=1e-3)
    assert ours.max(1).min() < 0.9  # so that there is something to compare


def test_run_without_epochs_has_no_checkpoint_and_records_its_weights(lda: Run, weights: Path) -> None:
    description = json.loads((lda.path / "run.json").read_text())

    assert description["backbone"] == {
        "kind": "resnet18",
        "weights": "resnet18.pth",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "licence": "bsd-3-clause",
    }
    assert description["weights_file"] == str(weights)
    assert description["input"]["height"] == 224
    assert not lda.has_checkpoint
    assert lda.epochs() == []


def test_bundle_answers_a_png_as_training_does(lda: Run, bundle: Bundle, sources: Sources) -> None:
    images = load_images(lda.recipe, sources)
    position = int(images.splits["test"][4])
    image = images.dataset.images[position]
    expected = run_graph(eager(lda.load_classifier(), CPU), image[None], images.dataset.input)

    for runtime in ("onnx", "torchscript"):
        (answer,) = Predictor(bundle, runtime).predict([png(image.permute(1, 2, 0).numpy())])  # type: ignore[arg-type]
        assert isinstance(answer, dict)
        found = [answer["probabilities"][name] for name in CLASSES]
        np.testing.assert_allclose(found, expected["posterior"][0], atol=1e-5)
        assert answer["log_density"] == pytest.approx(float(expected["log_density"][0]), rel=1e-4)


def test_bundle_takes_the_backbones_size_and_is_measured_on_the_small_images(
    lda: Run, bundle: Bundle, sources: Sources
) -> None:
    images = load_images(lda.recipe, sources)
    test = images.part("test", CPU)
    own = measure(run_graph(eager(lda.load_classifier(), CPU), test.images, images.dataset.input), test.labels)

    assert bundle.manifest.input == InputSpec(channels=3, height=224, width=224)
    assert bundle.manifest.head.dim == 512
    assert bundle.read_golden()[0].shape[1:] == (3, 224, 224)
    assert bundle.manifest.metrics["images"] == TEST
    assert bundle.manifest.metrics["accuracy"] == own["accuracy"]
    assert bundle.manifest.metrics["nll"] == pytest.approx(own["nll"], abs=1e-4)


def test_what_is_quick_answers_as_torch_does(lda: Run, sources: Sources) -> None:
    classifier, images = lda.load_classifier(), load_images(lda.recipe, sources)
    classifier.temperature = 3.0
    some = images.dataset.images[:5]

    made = run_graph(quickly(classifier, CPU, pooled=True), some, images.dataset.input)

    expected = run_graph(eager(classifier, CPU, pooled=True), some, images.dataset.input)
    assert made["pooled"].shape == (5, 512)
    assert list(made) == list(expected)
    for name, values in made.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_mixture_on_principal_components_is_a_projection_after_the_backbone(sources: Sources, tmp_path: Path) -> None:
    refit = {"head": "mda", "dim": 4, "components": 2, "covariance": "diagonal", "ridge": 0.1}
    run = finished(recipe_of(fit={"epochs": 0}, refit=refit, head={"kind": "lda"}), sources, tmp_path)

    classifier = run.load_classifier()

    images = load_images(run.recipe, sources)
    made = run_graph(eager(classifier, CPU), images.dataset.images, images.dataset.input)["features"]
    of_train = torchvision_features(images.part("train", CPU).images, sources.weights or Path())
    projection = classifier.encoder.projection
    assert isinstance(projection, nn.Linear)
    assert classifier.architecture.dim == 4
    with torch.inference_mode():
        expected = projection(torch.from_numpy(of_train)).numpy()
    np.testing.assert_allclose(made[images.splits["train"]], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(expected.mean(0), np.zeros(4), atol=1e-4)  # principal components are centred


def test_head_is_trained_on_the_features_and_the_backbone_is_not(sources: Sources, tmp_path: Path) -> None:
    run = finished(recipe_of(encoder={"dim": 8}, fit={"epochs": 5}, calibration={}), sources, tmp_path)

    classifier = run.load_classifier()

    losses = [line["loss"] for line in run.epochs()]
    assert losses[-1] < losses[0]
    assert classifier.architecture.dim == 8
    assert same_weights(classifier.encoder.trunk, load_backbone("resnet18", sources.weights))
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    assert set(checkpoint["classifier"]) == {
        "mean", "std", "encoder.projection.weight", "encoder.projection.bias", "head.linear.weight", "head.linear.bias",
    }  # fmt: skip


def test_training_that_was_broken_off_resumes_to_the_same_weights(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(fit={"epochs": 4})
    whole = finished(recipe, sources, tmp_path, "whole").load_classifier()
    run = Run.create("backbone", recipe, "broken", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", breaking_after(2))
        with pytest.raises(KeyboardInterrupt):
            train(run, sources, CPU)
    resumed = train(Run.open(run.path), replace(sources_of(run, sources.root), cache=sources.cache), CPU)

    assert logged_epochs(run.path) == [1, 2, 3, 4]
    assert same_weights(resumed, whole)


def breaking_after(epoch: int) -> Any:
    """`Run.save_checkpoint`, interrupted once it has saved that epoch."""
    save = Run.save_checkpoint

    def saved(run: Run, state: dict[str, Any]) -> None:
        save(run, state)
        if state["epoch"] == epoch:
            raise KeyboardInterrupt

    return saved


def test_run_is_not_resumed_with_other_weights(sources: Sources, tmp_path: Path) -> None:
    run = finished(recipe_of(fit={"epochs": 1}), sources, tmp_path)
    torch.manual_seed(1)
    other = tmp_path / "other.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), other)

    with pytest.raises(
        RunError, match=r"^weights must be those that .* was begun with \(\w{64}\), got others \(\w{64}\)"
    ):
        train(run, replace(sources, weights=other), CPU)
    with pytest.raises(RunError, match=r"got others \(download\): name theirs with --weights, or train a new run$"):
        train(run, replace(sources, weights=None), CPU)


def test_run_of_before_licences_were_kept_goes_on_with_its_weights_alone(sources: Sources, tmp_path: Path) -> None:
    run = finished(recipe_of(fit={"epochs": 1}), sources, tmp_path)
    description = run.description()
    description["weights"] = description.pop("backbone")["sha256"]
    (run.path / "run.json").write_text(json.dumps(description))

    train(Run.open(run.path), sources, CPU)

    with pytest.raises(RunError, match=r"^weights must be those that .*, got others \(download\)"):
        train(Run.open(run.path), replace(sources, weights=None), CPU)


def test_page_says_where_the_weights_are_from(lda: Run, sources: Sources) -> None:
    evidence = gather(lda, sources, CPU)

    rows = dict(facts_in_words(run_facts(evidence), None))

    digest = hashlib.sha256((sources.weights or Path()).read_bytes()).hexdigest()
    assert rows["backbone"] == f"weights: resnet18.pth (SHA-256 {digest}); licence of those published: bsd-3-clause"


def test_vit_and_its_head_become_both_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    spec = EncoderSpec(kind="vit-s16", dim=4)
    classifier = build_classifier(Architecture((3, 224, 224), 3, spec, HeadSpec(kind="lda"))).eval()
    for buffer, value in zip((classifier.mean, classifier.std), normalisation_of("vit-s16"), strict=True):
        buffer.copy_(value)
    two = golden_images((3, 224, 224))[1:3]
    monkeypatch.setattr("training.export.golden_images", lambda _: two)

    write_graphs(classifier, tmp_path)

    expected = run_graph(eager(classifier, CPU), two)
    session = onnxruntime().InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["posterior", "features"], {"images": two[:1].numpy()})
    np.testing.assert_allclose(found[0], expected["posterior"][:1], atol=1e-5)
    np.testing.assert_allclose(found[1], expected["features"][:1], atol=1e-4)
    assert (tmp_path / "model.pt").stat().st_size > 80e6  # the backbone is in it


# Recipes


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("probe", "encoder.dim=513", "encoder.dim must be at most 512 for the encoder resnet18, got 513"),
        (
            "probe",
            "fit.flip=true",
            "fit.flip must be false for the encoder resnet18 while it is frozen, got true: "
            "encoder.frozen = false fine-tunes it",
        ),
        (
            "probe",
            "fit.crop_padding=14",
            "fit.crop_padding must be 0 for the encoder resnet18 while it is frozen, got 14: "
            "encoder.frozen = false fine-tunes it",
        ),
        (
            "probe",
            "fit.crop_scale=0.5",
            "fit.crop_scale must be left out for the encoder resnet18 while it is frozen, got 0.5: "
            "encoder.frozen = false fine-tunes it",
        ),
        (
            "probe",
            "fit.layer_decay=0.5",
            "fit.layer_decay must be 1.0 for the encoder resnet18 while it is frozen, got 0.5: "
            "encoder.frozen = false fine-tunes it",
        ),
        ("probe", "fit.scales=[0.5]", "fit.scales must be [1.0] for the encoder resnet18, got [0.5]"),
        ("probe", "fit.epochs=0", "fit.epochs must be greater than or equal to 1 without a [refit], got 0"),
        ("lda", "encoder.side=31", "encoder.side must be greater than or equal to 32, got 31"),
        (
            "lda",
            "encoder.kind=none encoder.power=true",
            "encoder.side and encoder.power must be left out for the encoder none, which is no backbone, got None "
            "and true",
        ),
        ("lda", "encoder.kind=vit-s16 encoder.side=96", "encoder.side must be 224 for the encoder vit-s16, got 96"),
        ("lda", "encoder.dim=9", "fit.epochs must be greater than or equal to 1, got 0"),
        ("lda", "encoder.kind=six-conv", "fit.epochs must be greater than or equal to 1, got 0"),
        ("lda", "loss.kind=fisher", "loss.kind fisher must go with an encoder that learns, got resnet18"),
        (
            "lda",
            "data.name=folder data.size=32",
            "data.size and data.channels must be 224 and 3 for the encoder resnet18, got 32 and 3",
        ),
    ],
)  # fmt: skip
def test_recipe_that_does_not_suit_a_backbone_is_refused(name: str, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(f"cifar10-resnet18-{name}", override.split(" "))

    assert str(caught.value) == message


@pytest.mark.parametrize("backbone", ["resnet18", "vit"])
@pytest.mark.parametrize("head", ["probe", "lda", "mda"])
def test_recipes_are_the_notebooks(backbone: str, head: str) -> None:
    _, recipe = load_recipe(f"cifar10-{backbone}-{head}")

    assert recipe.encoder.kind == {"resnet18": "resnet18", "vit": "vit-s16"}[backbone]
    assert (recipe.refit is None) == (head == "probe")
    assert recipe.fit.epochs == (20 if head == "probe" else 0)
    assert recipe.calibration is not None
