"""The features of a frozen trunk, judged by torch in float64; no weights are pretrained."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from serving.runtimes import onnxruntime
from training.classifier import Architecture, Classifier, build_classifier
from training.extraction import Pooled, _in_torch, engine_of, open_extractor
from training.recipe import EncoderSpec, HeadSpec

CPU = torch.device("cpu")
SIDE = 64


def classifier_of(kind: str, *, power: bool) -> Classifier:
    """A classifier on a backbone whose weights are random and whose batch norms have seen images."""
    torch.manual_seed(0)
    spec = EncoderSpec(kind=kind, side=SIDE, power=power)
    classifier = build_classifier(Architecture((3, SIDE, SIDE), 2, spec, HeadSpec(kind="lda")))
    classifier.mean.fill_(120.0)
    classifier.std.fill_(60.0)
    for module in classifier.encoder.trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    with torch.inference_mode():
        classifier.encoder.trunk.train()(classifier.normalise(images_of(16)))
    return classifier.eval()


def images_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def expected_of(classifier: Classifier, images: torch.Tensor) -> np.ndarray:
    exact = copy.deepcopy(classifier).double()
    with torch.inference_mode():
        return exact.encoder.trunk(exact.normalise(images)).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "power"), [("resnet18", False), ("efficientnet-lite0", True)])
def test_features_on_a_cpu_are_those_of_float64(kind: str, power: bool) -> None:
    classifier = classifier_of(kind, power=power)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}

    extract = open_extractor(classifier, CPU)

    for count in (1, 5):  # batches of any size
        found, expected = extract(images_of(count)), expected_of(classifier, images_of(count))
        assert found.dtype == np.float32
        assert found.flags["C_CONTIGUOUS"]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * float(np.sqrt(np.square(expected).mean())))
    assert engine_of(CPU) == f"ONNX Runtime {onnxruntime().__version__}"
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())


@pytest.mark.isa
@pytest.mark.parametrize(("precision", "relative"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_torch_makes_the_same_features_in_either_precision(precision: str, relative: float) -> None:
    """A CPU stands in for the GPU that this is for, which cannot be had here."""
    classifier = classifier_of("resnet18", power=True)
    pooled = copy.deepcopy(Pooled(classifier)).eval()

    found = _in_torch(pooled, CPU, precision)(images_of(5))  # type: ignore[arg-type]

    expected = expected_of(classifier, images_of(5))
    assert found.dtype == np.float32
    assert np.sqrt(np.square(found - expected).mean()) < relative * np.sqrt(np.square(expected).mean())
    np.testing.assert_allclose(np.square(found).mean(1), np.ones(5), rtol=1e-5)  # of one length: not in bfloat16
