"""Out-of-distribution detection, judged by cases worked by hand and by scikit-learn."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_samples import digits, small_recipe

from serving.held_out import HeldOut
from serving.preprocess import read_array
from training.analysis import ood
from training.analysis.evidence import Evidence, gather
from training.analysis.linear import linear_readout, pixel_templates
from training.analysis.ood import DRAWN_SETS, false_positive_rate, ood_of, separation, stranger_sets
from training.classifier import Architecture, build_classifier
from training.data import DataError, Dataset, Sources
from training.datasets import DATASETS
from training.heads import LinearHead, lda_head, mda_head
from training.recipe import DataSpec, EncoderSpec, HeadSpec
from training.run import Run
from training.train import train

CPU = torch.device("cpu")
DRAWN = 20  # of a set, for a page of text takes its time
SCORES = ["log_density", "max_probability", "energy", "relative_mahalanobis", "vim", "knn"]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A tiny run on digits."""
    run = Run.create("small", small_recipe(), "a", tmp_path_factory.mktemp("runs"))
    train(run, Sources(), CPU)
    return gather(run, Sources(), CPU, sample=1500)


def made_up(spec: DataSpec, sources: Sources) -> Dataset:
    """`mnist`: digits black on white. `cifar10`: larger ones in colours, black on white too; 100 test images each."""
    images, first = 255 - digits().images, len(digits().labels) - 100
    if spec.name == "cifar10":
        images = images.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat(1, 3, 1, 1)
        images[:, 0] //= 2
    return replace(digits(), images=images, name=spec.name, test_start=first)


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits have strangers, which are made of digits."""
    monkeypatch.setattr(ood, "load_dataset", made_up)
    monkeypatch.setitem(DATASETS, "digits", DATASETS["digits"]._replace(near=("mnist",), far=("cifar10",)))


@pytest.fixture(autouse=True)
def fewer_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ood, "DRAWN_IMAGES", DRAWN)


# Separation


def test_separation_of_five_scores_by_hand() -> None:
    """Of six pairs, strangers' 2.5 is above the known 2 and 0.5 below all: AUROC 5/6.

    From above, the known are found with precision 1, 1 and 3/4; from below, the strangers with 1 and 2/3.
    """
    figures = separation(np.array([2.0, 3.0, 4.0]), np.array([2.5, 0.5]))

    assert (figures["auroc"], figures["fpr_at_95_tpr"]) == (round(5 / 6, 6), 0.5)  # all three known are accepted at 2
    assert (figures["aupr_known"], figures["aupr_strangers"]) == (round(2.75 / 3, 6), round((1 + 2 / 3) / 2, 6))
    assert figures["auroc_interval"][0] < 5 / 6 < figures["auroc_interval"][1]


def test_threshold_accepts_95_of_100() -> None:
    """The known score 1 to 100: 95 of them reach 6. Of the strangers 5.9, 6, 7 and 200, three do."""
    assert false_positive_rate(np.arange(1.0, 101.0), np.array([5.9, 6.0, 7.0, 200.0])) == 0.75


def test_scores_that_tell_nothing_are_chance() -> None:
    figures = separation(np.zeros(10), np.zeros(7))

    shares = {"aupr_known": round(10 / 17, 6), "aupr_strangers": round(7 / 17, 6)}
    assert figures == {"auroc": 0.5, "auroc_interval": (0.5, 0.5), **shares, "fpr_at_95_tpr": 1.0}


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^scores must be finite, got nan$"):
        separation(np.array([1.0, np.nan]), np.array([0.0]))


# The linear read-out


@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full"])
def test_linear_readout_of_lda_has_its_posterior(covariance: str) -> None:
    torch.manual_seed(1)
    head = lda_head(4, 3, covariance)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    features = torch.randn(9, 3)
    readout = linear_readout(head)
    assert readout is not None

    logits = torch.from_numpy(features.double().numpy() @ readout[0].T + readout[1])

    np.testing.assert_allclose(logits.softmax(1), head(features).log_joints.softmax(1).detach(), atol=1e-6)


def test_linear_readout_of_lda_does_not_depend_on_the_origin() -> None:
    torch.manual_seed(2)
    head, moved, shift = lda_head(3, 2), lda_head(3, 2), torch.tensor([5.0, -7.0])
    moved.load_state_dict(head.state_dict())
    with torch.no_grad():
        moved.gaussians.means += shift
    features = torch.randn(6, 2)
    here, there = linear_readout(head), linear_readout(moved)
    assert here is not None
    assert there is not None

    first = features.double().numpy() @ here[0].T + here[1]
    second = (features + shift).double().numpy() @ there[0].T + there[1]

    np.testing.assert_allclose(first, second, atol=1e-5)


def test_linear_heads_are_their_own_readout_and_mixtures_have_none() -> None:
    torch.manual_seed(0)
    head, features = LinearHead("svm", 3, 2), torch.randn(5, 2)
    readout = linear_readout(head)
    assert readout is not None

    np.testing.assert_allclose(
        features.numpy() @ readout[0].T + readout[1], head(features).log_joints.detach(), rtol=1e-5
    )
    assert linear_readout(mda_head(3, 2, 1)) is None
    assert linear_readout(mda_head(3, 2, 2)) is None


@pytest.mark.parametrize("encoder", [{"kind": "linear", "dim": 5}, {"kind": "linear"}, {"kind": "none", "dim": 64}])
@pytest.mark.parametrize("head", ["softmax", "lda"])
def test_templates_are_the_gradient_of_the_logits(encoder: dict, head: str) -> None:
    torch.manual_seed(0)
    architecture = Architecture((1, 8, 8), 10, EncoderSpec(**encoder), HeadSpec(kind=head))
    classifier = build_classifier(architecture)
    classifier.learn_normalisation(digits().images)
    templates, readout = pixel_templates(classifier), linear_readout(classifier.head)
    assert templates is not None
    assert readout is not None

    pixels = digits().images[:1].float().requires_grad_()
    features = classifier.encoder((pixels - classifier.mean) / classifier.std)
    logit = features @ torch.from_numpy(readout[0][7]).float()
    (gradient,) = torch.autograd.grad(logit.sum(), pixels)

    np.testing.assert_allclose(templates[7], gradient[0], rtol=1e-3, atol=1e-6)


def test_networks_that_are_not_linear_have_no_templates() -> None:
    architecture = Architecture((1, 8, 8), 10, EncoderSpec(dim=3, width=4), HeadSpec(kind="softmax"))

    assert pixel_templates(build_classifier(architecture)) is None


# A whole run


@pytest.mark.usefixtures("strangers")
def test_every_set_of_strangers_is_scored_and_means_are_over_those_of_a_kind(evidence: Evidence) -> None:
    figures = ood_of(evidence, Sources(), CPU)

    changed = ["cifar10, upside down", "cifar10, inverted"]
    assert (figures["known"], figures["known_images"]) == ("digits", 1797)
    assert list(figures["sets"]) == ["mnist", "cifar10", *changed, *DRAWN_SETS]
    assert [one["kind"] for one in figures["sets"].values()] == ["near", *["far"] * (3 + len(DRAWN_SETS))]
    assert [one["images"] for one in figures["sets"].values()] == [100] * 4 + [DRAWN] * len(DRAWN_SETS)
    for name, one in figures["sets"].items():
        assert list(one["scores"]) == SCORES
        assert one["flagged"] is None
        for score in one["scores"].values():
            low, high = score["auroc_interval"] or (0, 1)
            assert 0 <= low <= score["auroc"] <= high <= 1
            assert 0 <= score["fpr_at_95_tpr"] <= 1
            assert (score["auroc_interval"] is None) == (name in DRAWN_SETS)
    assert figures["missing"] == {}
    assert figures["omitted"] == {"typicality_score": "the recipe holds no images out"}
    far = [one["scores"]["energy"]["auroc"] for one in figures["sets"].values() if one["kind"] == "far"]
    near = figures["sets"]["mnist"]["scores"]["vim"]
    assert figures["means"]["far"]["energy"]["auroc"] == pytest.approx(np.mean(far), abs=1e-6)
    assert figures["means"]["near"]["vim"] == {key: near[key] for key in ("auroc", "fpr_at_95_tpr")}
    assert list(figures["means"]["near"]) == SCORES


@pytest.mark.usefixtures("strangers")
def test_strangers_of_another_shape_are_made_into_what_a_server_makes_of_them(evidence: Evidence) -> None:
    spec = evidence.dataset.input
    sets = {one.name: one for one in stranger_sets("digits", spec, Sources())}

    images = sets["cifar10"].images()

    assert images.shape == (100, 1, 16, 16)
    colours = made_up(DataSpec(name="cifar10"), Sources()).images[-100:]
    asked = read_array(colours[3].permute(1, 2, 0).numpy(), spec)
    answers = ood._answers(evidence, images[3:4], CPU)
    ours = ood._answers(evidence, torch.tensor(asked)[None], CPU)
    np.testing.assert_array_equal(answers.outputs["posterior"], ours.outputs["posterior"])
    inverted, turned = (sets[f"cifar10, {change}"].images() for change in ("inverted", "upside down"))
    assert {image.numpy().tobytes() for image in inverted} == {(255 - image).numpy().tobytes() for image in images}
    assert {image.numpy().tobytes() for image in turned} == {image.flip(1, 2).numpy().tobytes() for image in images}


@pytest.mark.usefixtures("strangers")
def test_strangers_below_one_in_a_hundred_held_out_images_are_counted(evidence: Evidence) -> None:
    """What stands for a typicality are scores that are no more than 0 for the held-out images, and 1 for strangers."""

    def flagged(score: float) -> float:
        table = HeldOut(np.linspace(-1, 0, 200, dtype=np.float32), np.ones(1), np.zeros(1, int), np.zeros(10, int))  # type: ignore[arg-type]
        outputs = evidence.test.outputs | {"typicality_score": np.zeros(1797, np.float32)}
        judged = replace(evidence, held_out=table, test=replace(evidence.test, outputs=outputs))
        answer = ood.answers_of
        with pytest.MonkeyPatch.context() as patch:

            def with_typicality(*arguments: object) -> object:
                answers = answer(*arguments)  # type: ignore[arg-type]
                scores = np.full(len(answers.labels), score, np.float32)
                return replace(answers, outputs=answers.outputs | {"typicality_score": scores})

            patch.setattr(ood, "answers_of", with_typicality)
            patch.setattr(ood, "DRAWN_SETS", ("noise",))
            figures = ood_of(judged, Sources(), CPU)
        share: float = figures["sets"]["noise"]["flagged"]
        assert list(figures["sets"]["noise"]["scores"]) == [*SCORES, "typicality_score"]
        return share

    assert (flagged(-2.0), flagged(-0.5)) == (1.0, 0.0)


def test_data_sets_without_strangers_meet_drawn_ones(evidence: Evidence) -> None:
    figures = ood_of(evidence, Sources(), CPU)

    assert tuple(figures["sets"]) == DRAWN_SETS
    assert figures["missing"] == {}
    assert list(figures["means"]) == ["far"]
    assert figures["sets"]["noise"]["scores"]["knn"]["auroc"] > 0.7


def test_strangers_that_are_not_there_are_named(
    evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(kind: type, name: str, root: Path) -> list[object]:
        raise DataError(f"{name} must lie in {root}")

    monkeypatch.setattr("training.datasets._download", absent)
    monkeypatch.setitem(DATASETS, "digits", DATASETS["digits"]._replace(near=("fashion-mnist",), far=("cifar10",)))

    figures = ood_of(evidence, Sources(tmp_path), CPU)

    assert tuple(figures["sets"]) == DRAWN_SETS
    assert figures["missing"]["fashion-mnist"] == f"fashion-mnist must lie in {tmp_path}"
    assert list(figures["missing"]) == ["fashion-mnist", "cifar10", "cifar10, upside down", "cifar10, inverted"]


def test_figures_of_a_run_need_it_to_be_finished(tmp_path: Path) -> None:
    run = Run.create("small", small_recipe(), "unfinished", tmp_path)

    with pytest.raises(ValueError, match=f"^run must be finished, got {re.escape(str(run.path))}"):
        ood.ood_figures(run, Sources(), CPU)
