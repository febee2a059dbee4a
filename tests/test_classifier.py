"""The classifier: normalisation, building from a recipe's parts, and the graph that is served."""

import numpy as np
import pytest
import torch

from training.classifier import Architecture, Classifier, ServedGraph, build_classifier
from training.heads import DiscriminantHead, LinearHead, build_head
from training.recipe import EncoderSpec, HeadSpec

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), dtype=np.uint8))


def classifier_with(head: HeadSpec, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    architecture = Architecture((3, 8, 8), 4, EncoderSpec(dim=5, width=4), head)
    classifier = build_classifier(architecture).eval()
    classifier.learn_normalisation(IMAGES)
    with torch.no_grad():
        for parameter in classifier.head.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return classifier


def test_normalisation_is_learned_per_channel() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[:, 1] = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, 8, 8), dtype=np.uint8))
    images[:2, 2] = 255
    classifier = classifier_with(HeadSpec(kind="lda"))

    classifier.learn_normalisation(images)

    pixels = images.double()
    torch.testing.assert_close(classifier.mean.flatten().double(), pixels.mean((0, 2, 3)))
    deviations = pixels.transpose(0, 1).flatten(1).std(1, unbiased=False)
    assert deviations[0] == 0
    torch.testing.assert_close(classifier.std.flatten().double(), deviations.clamp(min=1))
    normalised = classifier.normalise(images)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised[:, 1:].transpose(0, 1).flatten(1).std(1, unbiased=False), torch.ones(2))


def test_scores_are_the_heads_on_the_encoders_features() -> None:
    classifier = classifier_with(HeadSpec(kind="mda", components=2))

    scores = classifier(IMAGES)

    features = classifier.encoder((IMAGES.float() - classifier.mean) / classifier.std)
    torch.testing.assert_close(scores.features, features)
    torch.testing.assert_close(scores.log_joints, classifier.head(features).log_joints)


@pytest.mark.parametrize(
    ("spec", "kind", "components"),
    [
        (HeadSpec(kind="lda", covariance="full"), DiscriminantHead, 1),
        (HeadSpec(kind="mda", components=3, covariance="diagonal"), DiscriminantHead, 3),
        (HeadSpec(kind="mda", components=3, simplex=True), DiscriminantHead, 3),
        (HeadSpec(kind="softmax"), LinearHead, 1),
        (HeadSpec(kind="svm"), LinearHead, 1),
    ],
)
def test_build_head_follows_its_specification(spec: HeadSpec, kind: type, components: int) -> None:
    head = build_head(spec, 4, 5)

    assert isinstance(head, kind)
    assert (head.kind, head.classes, head.dim, head.components) == (spec.kind, 4, 5, components)
    if isinstance(head, DiscriminantHead):
        assert head.gaussians.covariance == spec.covariance
        assert head.gaussians.means.requires_grad != spec.simplex
        assert len(head.gaussians.cholesky()) == (1 if spec.kind == "lda" else 12)


def test_build_classifier_is_decided_by_torchs_seed() -> None:
    spec = HeadSpec(kind="mda", components=2)
    first, again, other = (classifier_with(spec, seed).state_dict() for seed in (0, 0, 1))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.gaussians.means"], other["head.gaussians.means"])


def test_build_classifier_refuses_parts_that_do_not_fit() -> None:
    simplex = Architecture((1, 8, 8), 10, EncoderSpec(dim=4), HeadSpec(kind="lda", simplex=True))

    with pytest.raises(ValueError, match="dim must be at least classes - 1 = 9"):
        build_classifier(simplex)


@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full"])
@pytest.mark.parametrize(("kind", "components"), [("lda", 1), ("mda", 3)])
def test_served_graph_answers_what_the_head_scores(kind: str, components: int, covariance: str) -> None:
    classifier = classifier_with(HeadSpec(kind=kind, components=components, covariance=covariance)).double()
    scores = classifier(IMAGES)
    joint = scores.component_log_joints.exp()  # (N, C, K)

    graph = ServedGraph(classifier)
    answers = dict(zip(graph.output_names, graph(IMAGES), strict=True))

    assert tuple(answers) == ("posterior", "responsibilities", "log_density", "features")
    torch.testing.assert_close(answers["posterior"], joint.sum(2) / joint.sum((1, 2))[:, None])
    torch.testing.assert_close(answers["responsibilities"], joint / joint.sum(2, keepdim=True))
    constant = -5 / 2 * np.log(2 * np.pi)
    torch.testing.assert_close(answers["log_density"], joint.sum((1, 2)).log() + constant)
    torch.testing.assert_close(answers["features"], scores.features)


@pytest.mark.parametrize("kind", ["softmax", "svm"])
def test_served_graph_of_a_linear_head_has_posterior_and_features(kind: str) -> None:
    classifier = classifier_with(HeadSpec(kind=kind)).double()
    scores = classifier(IMAGES)

    graph = ServedGraph(classifier)
    posterior, features = graph(IMAGES)

    assert graph.output_names == ("posterior", "features")
    torch.testing.assert_close(posterior, scores.log_joints.exp() / scores.log_joints.exp().sum(1, keepdim=True))
    torch.testing.assert_close(features, scores.features)
