"""Features of a frozen backbone: extracted once, shard by shard; the network stands for one where none is needed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms
from training_samples import FOLDER_DATA, digits, write_digit_folder

from training import features as features_module
from training.backbones import backbone_input, normalisation_of
from training.classifier import Architecture, Classifier, build_classifier
from training.data import Dataset, Sources
from training.datasets import load_dataset
from training.encoders import EncoderKind
from training.extraction import Extractor, open_extractor
from training.features import FeatureCache, features_of, open_features
from training.image_files import in_memory
from training.recipe import DataSpec, EncoderSpec, HeadSpec
from training.weights import load_backbone

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class Counting(nn.Module):
    """Stands for a backbone: 4 times the mean of each image. Fails in a batch, if told so."""

    def __init__(self, fails_in: int | None = None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4), requires_grad=False)
        self.sizes: list[int] = []
        self.fails_in = fails_in

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(self.sizes) == self.fails_in:
            raise KeyboardInterrupt
        return images.mean((1, 2, 3))[:, None] * self.scale


@pytest.fixture(autouse=True)
def counted_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exported graph counts nothing, so torch itself runs the network that counts; real ones are exported."""

    def extractor(classifier: Classifier, device: torch.device) -> Extractor:
        if not isinstance(network := classifier.encoder.trunk, Counting):
            return open_extractor(classifier, device)
        return lambda images: network(classifier.normalise(images)).numpy()

    monkeypatch.setattr(features_module, "open_extractor", extractor)


def opened(network: nn.Module, root: Path, mean: float = 0, kind: EncoderKind = "none") -> FeatureCache:
    """The features of a network that stands in a classifier's trunk."""
    architecture = Architecture((3, 16, 16), 2, EncoderSpec(kind=kind), HeadSpec(kind="softmax"))
    classifier = build_classifier(architecture).eval()
    classifier.encoder.trunk = network
    classifier.mean.fill_(mean)
    return open_features(classifier, root)


def squares(count: int = 48) -> Dataset:
    """Small images of noise, made larger before they are seen."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    spec = digits().input.model_copy(update={"channels": 3, "height": 16, "width": 16})
    return replace(digits(), images=torch.from_numpy(pixels), labels=torch.arange(count) % 2, input=spec)


def photos(folder: Path, sources: Sources) -> Dataset:
    return load_dataset(DataSpec(**{**FOLDER_DATA, "channels": 3}), replace(sources, folder=folder))


def means_of(dataset: Dataset) -> np.ndarray:
    """What `Counting` makes of images of their own size."""
    return np.repeat(in_memory(dataset.images).numpy().mean((1, 2, 3))[:, None], 4, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_those_of_torchvisions_own_model(channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    architecture = Architecture((3, 224, 224), 2, EncoderSpec(kind="resnet18"), HeadSpec(kind="softmax"))
    classifier = build_classifier(architecture).eval()
    classifier.encoder.trunk = load_backbone("resnet18", tmp_path / "resnet18.pth")
    for buffer, value in zip((classifier.mean, classifier.std), normalisation_of("resnet18"), strict=True):
        buffer.copy_(value)
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, channels, 32, 32), dtype=np.uint8))
    dataset = replace(digits(), images=images, input=backbone_input(digits().input, 224))

    features = features_of(open_features(classifier, tmp_path), dataset)

    preprocess = transforms.Compose([transforms.Resize(224), transforms.ToTensor(), transforms.Normalize(*IMAGENET)])
    coloured = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    model.fc = nn.Identity()
    with torch.inference_mode():
        expected = model.eval()(torch.stack([preprocess(Image.fromarray(image)) for image in coloured]))
    assert features.shape == (3, 512)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_features_are_extracted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = Counting()

    first = features_of(opened(network, tmp_path), squares())
    said_first = capsys.readouterr().out
    again = features_of(opened(network, tmp_path), squares())

    (file,) = tmp_path.rglob("*.npy")
    assert network.sizes == [48]
    np.testing.assert_array_equal(first, again)
    assert said_first == f"features of none: 48 images into {file.parent}\n"
    assert capsys.readouterr().out == f"features of none: reusing {file.parent}\n"


@pytest.mark.parametrize("change", ["weights", "normalisation", "kind", "preprocessing", "images"])
def test_other_features_are_extracted_anew(change: str, tmp_path: Path) -> None:
    features_of(opened(Counting(), tmp_path), squares())
    network, dataset, more = Counting(), squares(), {}
    if change == "weights":
        network.scale[3] += 1e-6
    elif change == "preprocessing":
        dataset = replace(dataset, input=dataset.input.model_copy(update={"resize": "stretch"}))
    elif change == "images":
        dataset = replace(dataset, images=dataset.images.flip(0))
    else:
        more = {"normalisation": {"mean": 1}, "kind": {"kind": "linear"}}[change]

    features_of(opened(network, tmp_path, **more), dataset)

    assert network.sizes == [48]


def test_extraction_that_was_broken_off_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, network = squares(600), Counting()
    with pytest.raises(KeyboardInterrupt):
        features_of(opened(Counting(fails_in=6), tmp_path), dataset)  # in the second shard
    capsys.readouterr()

    features = features_of(opened(network, tmp_path), dataset)

    assert sum(network.sizes) == 600 - 256
    assert capsys.readouterr().out.startswith("features of none: 344 of 600 images into ")
    np.testing.assert_array_equal(features, features_of(opened(Counting(), tmp_path / "other"), dataset))


def test_shard_that_a_crash_has_damaged_is_extracted_anew(tmp_path: Path) -> None:
    expected = features_of(opened(Counting(), tmp_path), squares()).copy()
    (file,) = tmp_path.rglob("*.npy")
    for damaged in (b"", file.read_bytes()[:300]):
        file.write_bytes(damaged)

        np.testing.assert_array_equal(features_of(opened(Counting(), tmp_path), squares()), expected)


# Of a folder


def test_photos_are_decoded_and_extracted_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, cache = Counting(), tmp_path / "cache"
    folder = write_digit_folder(tmp_path / "photos")

    dataset = photos(folder, Sources(cache=cache, features=opened(network, cache)))

    assert sum(network.sizes) == 120
    expected = means_of(dataset)
    monkeypatch.setattr("training.image_files.open_image", None)  # nothing is decoded any more
    features = features_of(opened(network, cache), photos(folder, Sources(cache=cache)))
    assert sum(network.sizes) == 120
    np.testing.assert_allclose(features, expected, rtol=1e-6)


def test_new_photo_is_extracted_with_its_shard_alone(tmp_path: Path) -> None:
    network, cache = Counting(), tmp_path / "cache"
    folder = write_digit_folder(tmp_path / "photos")
    photos(folder, Sources(cache=cache, features=opened(network, cache)))
    network.sizes.clear()
    Image.new("RGB", (9, 9), "red").save(folder / "1" / "new.png")

    dataset = photos(folder, Sources(cache=cache, features=opened(network, cache)))

    assert 1 <= sum(network.sizes) <= 41  # of a class of 40
    features = features_of(opened(network, cache), dataset)
    np.testing.assert_allclose(features, means_of(dataset), rtol=1e-6)


def test_folder_that_was_indexed_without_features_gets_them(tmp_path: Path) -> None:
    network, cache = Counting(), tmp_path / "cache"
    folder = write_digit_folder(tmp_path / "photos")
    (folder / "0" / "broken.png").write_bytes(b"")
    dataset = photos(folder, Sources(cache=cache))

    features = features_of(opened(network, cache), dataset)

    assert sum(network.sizes) == len(features) == 120
    np.testing.assert_allclose(features, means_of(dataset), rtol=1e-6)
