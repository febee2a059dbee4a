"""The temperature of responsibilities: what refits on other images say, and where it goes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from training_samples import FOLDER_DATA, small_recipe, write_digit_folder

from serving.bundle import Bundle
from training.classifier import Architecture, Classifier, ServedGraph, build_classifier
from training.component_calibration import (
    Matched,
    as_first,
    calibrate_components,
    fit_component_temperature,
    judged_by_refits,
    reliability_at,
)
from training.components import assignments, matching, of_own_class
from training.condition import condition
from training.data import Sources
from training.export import export, golden_images
from training.features import as_images, head_stage
from training.heads import mda_head
from training.principal import Rows
from training.recipe import EncoderSpec, HeadSpec, RecipeError
from training.refit import fit_head, refit
from training.refit_spec import RefitSpec
from training.run import Run
from training.train import train

FloatArray = NDArray[np.float64]
SPEC = RefitSpec(features="output", components=2, covariance="full")


def blobs(distance: float, count: int = 400, seed: int = 0) -> tuple[FloatArray, NDArray[np.int64]]:
    """Features (2 count, 2) of two classes, each two round clouds of standard deviation 1 so far apart."""
    rng = np.random.default_rng(seed)
    within = rng.normal(size=(2 * count, 2)) + distance * (rng.random(2 * count) < 0.5)[:, None] * [1, 0]
    labels = np.repeat([0, 1], count)
    return within + labels[:, None] * [0, 30], labels


def taking_features(features: FloatArray, labels: NDArray[np.int64], spec: RefitSpec = SPEC) -> Classifier:
    """A classifier of features (N, D, 1, 1) whose head was fitted by EM."""
    torch.manual_seed(0)
    shape = (features.shape[1], 1, 1)
    architecture = Architecture(shape, 2, EncoderSpec(kind="none"), HeadSpec(kind="lda"))
    images, truth = torch.from_numpy(features).float()[:, :, None, None], torch.from_numpy(labels)
    return refit(build_classifier(architecture), spec, images, truth, seed=0)


# Matching


def test_components_are_matched_by_the_images_that_they_share() -> None:
    """The second fit calls 2, 0, 1 what the first calls 0, 1, 2, and takes one image for another kind."""
    first = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    second = np.array([2, 2, 2, 0, 0, 1, 1, 0])

    assert matching(first, second, 3).tolist() == [1, 2, 0]


def test_matching_makes_the_most_of_all_pairs_and_not_of_the_first() -> None:
    """Component 0 shares 3 images with either; only if it takes the second does the other keep 4 and not 0."""
    first = np.array([0] * 3 + [1] * 3 + [0] * 4)
    second = np.array([0] * 6 + [1] * 4)

    assert matching(first, second, 2).tolist() == [1, 0]


def test_each_class_is_matched_by_itself() -> None:
    labels = np.array([0, 0, 1, 1])
    first, second = np.array([0, 1, 0, 1]), np.array([1, 0, 0, 1])

    assert as_first(first, second, labels).tolist() == [0, 1, 0, 1]


# What refits say


def test_images_are_judged_by_refits_that_have_not_seen_them() -> None:
    features, labels = blobs(3.0, count=60)

    judged = judged_by_refits(features, labels, SPEC, seed=3)

    drawn = []
    for number in range(5):
        generator, seen = np.random.default_rng((3, number)), []
        for members in (np.arange(60), np.arange(60, 120)):
            seen.append(generator.choice(members, 60))
        drawn.append(np.concatenate(seen))
    pairs = [(a, b) for a in range(5) for b in range(5) if a != b]
    of_neither = [np.setdiff1d(np.arange(120), np.concatenate([drawn[a], drawn[b]])) for a, b in pairs]
    assert len(judged.labels) == sum(map(len, of_neither))
    assert judged.images == len(np.unique(np.concatenate(of_neither)))
    head = fit_head(features[drawn[0]], labels[drawn[0]], 2, SPEC, 3)
    expected = of_own_class(head, features[of_neither[0]], labels[of_neither[0]])
    np.testing.assert_allclose(judged.log_joints[: len(expected)], expected)


def test_clouds_far_apart_are_shared_out_alike_by_every_refit() -> None:
    judged = judged_by_refits(*blobs(12.0), SPEC, seed=0)

    assert torch.equal(judged.log_joints.argmax(1), judged.labels)


def test_temperature_has_the_least_brier_score_under_the_prior() -> None:
    features, labels = blobs(2.0)
    classifier, images = taking_features(features, labels), as_images(features.astype(np.float32))

    calibrate_components(classifier, SPEC, images, torch.from_numpy(labels), seed=0)

    judged = judged_by_refits(classifier(images).features.detach().double().numpy(), labels, SPEC, seed=0)
    joints, truth = judged.log_joints.numpy(), np.eye(2)[judged.labels.numpy()]

    def cost(log_t: float) -> float:
        return np.square(softmax(joints / np.exp(log_t), axis=1) - truth).sum() + abs(log_t)

    least = np.exp(minimize_scalar(cost, bounds=(-3, 6), method="bounded").x)
    assert classifier.component_temperature == pytest.approx(least, rel=1e-3)
    brier = np.square(softmax(joints / classifier.component_temperature, axis=1) - truth).sum(1).mean()
    assert classifier.component_calibration["after"]["brier"] == pytest.approx(brier, abs=1e-6)


def test_temperature_stays_one_without_images_and_where_refits_never_differ() -> None:
    none = Matched(torch.empty(0, 3, dtype=torch.float64), torch.empty(0, dtype=torch.int64), 0)
    sure = Matched(torch.tensor([[50.0, 0.0]] * 900, dtype=torch.float64), torch.zeros(900, dtype=torch.int64), 900)

    assert fit_component_temperature(none) == fit_component_temperature(sure) == 1


def test_responsibilities_hold_better_in_refits_on_images_that_are_really_others() -> None:
    """Twenty refits, each on fresh images, say how often fresh images are grouped as the model groups them."""
    features, labels = blobs(1.6)
    spec = SPEC.model_copy(update={"restarts": 1})
    classifier = taking_features(features, labels, spec)
    calibrate_components(classifier, spec, as_images(features.astype(np.float32)), torch.from_numpy(labels), seed=0)
    fresh, of_fresh = blobs(1.6, count=300, seed=100)
    joints = of_own_class(classifier.head, fresh, of_fresh)

    others = [fit_head(*blobs(1.6, seed=200 + seed), 2, spec, 0) for seed in range(20)]

    found = [as_first(joints.argmax(1), assignments(other, fresh, of_fresh), of_fresh) for other in others]
    judged = Matched(torch.from_numpy(np.tile(joints, (20, 1))), torch.from_numpy(np.concatenate(found)), len(fresh))
    before, after = (reliability_at(judged, at) for at in (1.0, classifier.component_temperature))
    assert classifier.component_temperature > 1
    assert after["brier"] < before["brier"] - 0.01
    assert after["ece"] < before["ece"] / 2


def test_reliability_is_that_worked_by_hand() -> None:
    """Three images of probability 3/4 by odds of 3, of which two are grouped so, and one of probability 1."""
    odds = np.log(3)
    log_joints = torch.tensor([[odds, 0.0], [odds, 0.0], [0.0, odds], [100.0, 0.0]], dtype=torch.float64)
    judged = Matched(log_joints, torch.tensor([0, 0, 0, 0]), 4)

    figures = reliability_at(judged, 1.0)

    assert figures["nll"] == pytest.approx((2 * np.log(4 / 3) + np.log(4)) / 4, abs=1e-6)
    assert figures["ece"] == pytest.approx(abs(3 * 0.75 - 2) / 4, abs=1e-6)
    assert figures["sure"] == 0.25


def test_trunks_features_in_a_file_give_the_same(tmp_path: Path) -> None:
    features, labels = blobs(2.0)
    spec = SPEC.model_copy(update={"features": "pooled", "dim": 2})
    first, second = (taking_features(features, labels, spec) for _ in range(2))
    np.save(tmp_path / "features.npy", features.astype(np.float32))
    rows = Rows(np.load(tmp_path / "features.npy", mmap_mode="r"), np.arange(len(labels)))

    calibrate_components(first, spec, as_images(features.astype(np.float32)), torch.from_numpy(labels), seed=1)
    calibrate_components(second, spec, rows, torch.from_numpy(labels), seed=1)

    assert first.component_temperature == pytest.approx(second.component_temperature, rel=1e-4)


def test_too_few_images_leave_it_at_one_and_say_why() -> None:
    features, labels = blobs(2.0, count=9)
    classifier = taking_features(features, labels)

    calibrate_components(classifier, SPEC, as_images(features.astype(np.float32)), torch.from_numpy(labels), seed=0)

    assert classifier.component_temperature == 1
    assert classifier.component_calibration == {"why": "a class has 9 images, too few for refits with 2 components"}


# Where it goes


def mixture(component_temperature: float) -> Classifier:
    torch.manual_seed(0)
    architecture = Architecture(
        (1, 8, 8), 3, EncoderSpec(kind="none"), HeadSpec(kind="mda", components=3, covariance="full")
    )
    classifier = build_classifier(architecture).eval()
    classifier.learn_normalisation(golden_images((1, 8, 8)))
    classifier.component_temperature = component_temperature
    return classifier


def test_graph_divides_what_components_are_told_by_and_nothing_else() -> None:
    classifier, images = mixture(7.0), golden_images((1, 8, 8))
    with torch.no_grad():
        answers = dict(zip(ServedGraph(classifier).output_names, ServedGraph(classifier)(images), strict=True))
        at_one = dict(zip(answers, ServedGraph(mixture(1.0))(images), strict=True))
        joints = classifier(images).component_log_joints

    torch.testing.assert_close(answers["responsibilities"], (joints / 7).softmax(2))
    assert torch.equal(answers["responsibilities"].argmax(2), at_one["responsibilities"].argmax(2))
    assert not torch.equal(answers["responsibilities"], at_one["responsibilities"])
    for name in ("posterior", "log_density", "features"):
        assert torch.equal(answers[name], at_one[name])


def test_rounding_counts_less_where_it_is_divided() -> None:
    images = golden_images((1, 8, 8))

    flat, steep = (condition(mixture(at).double(), images) for at in (50.0, 1.0))

    odds = mixture(50.0).double()
    with torch.inference_mode():
        graph = ServedGraph(odds)
        responsibilities = dict(zip(graph.output_names, graph(images), strict=True))["responsibilities"]
        single = dict(zip(graph.output_names, ServedGraph(mixture(50.0))(images), strict=True))["responsibilities"]
    assert ((single - responsibilities).abs() <= flat["responsibilities"]).all()
    assert torch.equal(flat["posterior"], steep["posterior"])


def test_a_head_of_its_own_stage_keeps_it() -> None:
    torch.manual_seed(0)
    spec = EncoderSpec(kind="efficientnet-lite0", dim=4)
    whole = build_classifier(Architecture((3, 224, 224), 2, spec, HeadSpec(kind="mda", components=2)))
    whole.component_temperature = 3.0

    assert head_stage(whole).component_temperature == 3.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on a folder of digits, whose recipe wants the temperature."""
    work = tmp_path_factory.mktemp("work")
    recipe = small_recipe(
        data=FOLDER_DATA,
        encoder={"kind": "linear"},
        fit={"epochs": 4},
        refit={"dim": 4, "components": 2, "ridge": 0.01, "restarts": 1},
        calibration={"components": "bootstrap"},
    )
    run = Run.create("small", recipe, "a", work / "runs")
    train(run, Sources(folder=write_digit_folder(work / "digits", per_class=60)), torch.device("cpu"))
    return run


def test_training_finds_it_and_run_and_bundle_hold_it(run: Run, tmp_path: Path) -> None:
    classifier = run.load_classifier()
    known = classifier.component_calibration

    bundle = export(run, Sources(folder=run.path.parents[2] / "digits"), tmp_path / "small" / "1")

    assert classifier.component_temperature > 0
    assert known["refits"] == 5
    assert known["after"]["brier"] <= known["before"]["brier"]
    assert known["why"].startswith(f"fitted on {known['images']} images that pairs of 5 bootstrap refits have not seen")
    manifest = Bundle.load(bundle.path).manifest
    assert manifest.calibration is not None
    assert manifest.calibration["components"] == {"temperature": classifier.component_temperature, **known}
    assert "why" in manifest.calibration


def test_runs_of_before_have_none(run: Run) -> None:
    saved = torch.load(run.path / "classifier.pt", weights_only=True)
    before = Run(run.path.with_name("before"), run.recipe)
    before.path.mkdir()
    torch.save({key: saved[key] for key in ("architecture", "temperature", "state")}, before.path / "classifier.pt")

    classifier = before.load_classifier()

    assert (classifier.component_temperature, classifier.component_calibration) == (1.0, {})


def test_it_can_be_named_by_the_recipe(tmp_path: Path) -> None:
    recipe = small_recipe(
        fit={"epochs": 1},
        refit={"dim": 3, "components": 2, "restarts": 1, "covariance": "diagonal"},
        calibration={"components": 4.0},
    )
    with pytest.raises(RecipeError, match=r"^calibration.components 4 must be found for this very recipe .* got None"):
        Run.create("small", recipe, "refused", tmp_path)


def test_it_must_go_with_a_refit() -> None:
    with pytest.raises(RecipeError, match=r"^calibration.components bootstrap must go with a \[refit\], got none$"):
        small_recipe(head={"kind": "mda", "components": 2}, calibration={"components": "bootstrap"})


def test_one_component_needs_none(run: Run) -> None:
    refitting = {"head": "lda", "dim": 3}
    recipe = small_recipe(
        data=FOLDER_DATA,
        encoder={"kind": "linear"},
        fit={"epochs": 1},
        refit=refitting,
        calibration={"components": "bootstrap"},
    )
    other = Run.create("small", recipe, "lda", run.path.parents[1])

    classifier = train(other, Sources(folder=run.path.parents[2] / "digits"), torch.device("cpu"))

    assert (classifier.component_temperature, classifier.component_calibration) == (1.0, {})


def test_head_without_components_takes_no_notice() -> None:
    head = mda_head(3, 4, 1)
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))

    answers = head.served(1.0, 9.0, torch.zeros(3))(features)

    assert torch.equal(answers[1], torch.ones(5, 3, 1))
