"""How far float32 moves answers: against exact float64 runs of moved features, and against what float32 does."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_samples import digits, digits_from, small_recipe

from serving.predictor import TOLERANCES
from training.classifier import Architecture, Classifier, ServedGraph, build_classifier
from training.condition import OF_HEAD, condition, log_odds
from training.data import Sources
from training.export import ParityError, golden_images, require_condition
from training.recipe import EncoderSpec, HeadSpec
from training.refit import refit
from training.refit_spec import RefitSpec
from training.run import Run
from training.train import train
from training.typicality import Scale, Seen, Typicality
from training.typicality_fit import evidence_of, fit_parts, measured

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = golden_images((1, 8, 8))
SMALLER_CPU = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
STEEPNESS = (1.0, 3.0, 10.0, 20.0, 30.0, 100.0, 1e3, 1e5)


def steep(steepness: float) -> Classifier:
    """LDA on random features: the first golden image is between two classes, `steepness` away from either."""
    torch.manual_seed(0)
    architecture = Architecture((1, 8, 8), 2, EncoderSpec(dim=3, width=4), HeadSpec(kind="lda"))
    classifier = build_classifier(architecture).eval()
    classifier.learn_normalisation(digits().images)
    with torch.no_grad():
        between = classifier.encoder(classifier.normalise(GOLDEN))[0]
        away = steepness * torch.tensor([1.0, -1.0])[:, None] * torch.tensor([[0.6, 0.0, 0.8]])
        classifier.head.gaussians.means.copy_(between + away)
    return classifier


@pytest.fixture(scope="module")
def refitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Classifier]:
    """Mixtures fitted by EM on learned features of digits, with each covariance and a high and a low ridge."""
    run = Run.create("digits", small_recipe(encoder={"width": 8}), "one", tmp_path_factory.mktemp("runs"))
    classifier = train(run, Sources(), torch.device("cpu"))
    data = digits_from(0, 800)
    return {
        f"{covariance} {ridge:g}": refit(
            classifier,
            RefitSpec(dim=8, components=2, covariance=covariance, ridge=ridge, restarts=1),
            data.images, data.labels, seed=0,
        )
        for covariance in ("spherical", "diagonal", "full")
        for ridge in (1e-1, 1e-6)
    }  # fmt: skip


@pytest.fixture(scope="module")
def typical(refitted: dict[str, Classifier]) -> Classifier:
    """One of them with a typicality."""
    classifier, train, others = copy.deepcopy(refitted["full 1e-06"]), digits_from(0, 800), digits_from(800, 800)
    parts = fit_parts(evidence_of(classifier, train.images), train.labels.numpy(), 10)
    scale = Scale.of(measured(parts, evidence_of(classifier, others.images)))
    classifier.typicality = Typicality(parts, scale).float()
    return classifier


def decisions() -> list[bool]:
    """Whether each of a ladder of heads, from flat to steep, is accepted."""
    accepted = []
    for steepness in STEEPNESS:
        try:
            require_condition(steep(steepness), GOLDEN)
            accepted.append(True)
        except ParityError:
            accepted.append(False)
    return accepted


def test_log_odds_are_those_of_the_softmax() -> None:
    log_joints = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probability = log_joints.softmax(1)

    torch.testing.assert_close(log_odds(log_joints), (probability / (1 - probability)).log())
    assert torch.equal(log_odds(log_joints[:, :1]), torch.zeros(5, 1, dtype=torch.float64))


@pytest.mark.parametrize("steepness", [1.0, 10.0, 100.0])
def test_bound_between_two_classes_is_the_one_worked_by_hand(steepness: float) -> None:
    """The log-odds are 2 s d'(z - z0), and each log-joint there is log 1/2 - s^2 / 2."""
    classifier = steep(steepness).double()
    bounds = condition(classifier, GOLDEN[:1])

    by_features = 2 * steepness * (torch.tensor([0.6, 0.0, 0.8]) * bounds["features"][0]).norm()
    by_head = 2 * OF_HEAD * (1 + np.log(2) + steepness**2 / 2)
    expected = (by_features + by_head).sigmoid() - 0.5 + OF_HEAD / 2
    torch.testing.assert_close(bounds["posterior"][0], expected.expand(2), rtol=1e-3, atol=0)


def test_sure_answer_is_safe_only_as_long_as_its_log_odds_are_large_enough() -> None:
    classifier = steep(1e4).double()

    between = condition(classifier, GOLDEN[:1])["posterior"].max()
    with torch.no_grad():
        classifier.head.gaussians.means += 0.1 * torch.tensor([0.6, 0.0, 0.8])  # log-odds of -2000
        posterior = ServedGraph(classifier)(GOLDEN[:1])[0].min()
    sure = condition(classifier, GOLDEN[:1])["posterior"].max()

    assert between > 0.5
    assert posterior < 1e-100
    assert sure < 1e-5


@pytest.mark.parametrize("name", ["spherical 0.1", "diagonal 1e-06", "full 1e-06"])
def test_moved_features_move_answers_by_no_more_than_the_bound(refitted: dict[str, Classifier], name: str) -> None:
    """Features that are off by what the condition takes them to be, each at random, in float64."""
    classifier = copy.deepcopy(refitted[name]).double()
    images = digits_from(2000, 16).images
    bounds = condition(classifier, images)
    names, head = classifier.head.outputs, classifier.head.served(1.0, 1.0, torch.zeros(10))
    features = classifier.encoder(classifier.normalise(images))
    generator = torch.Generator().manual_seed(0)

    for _ in range(20):
        sign = torch.randint(2, features.shape, generator=generator) * 2 - 1
        moved = head(features + sign * bounds["features"])
        for output, before, after in zip(names, head(features), moved, strict=True):
            off, allowed = (after - before).abs(), 4 * bounds[output] + 1e-15  # four standard deviations
            assert (off <= allowed).all(), output


def test_what_is_seen_moves_the_typicality_by_no_more_than_the_bound(typical: Classifier) -> None:
    """Pooled features, first block and contrast are off by 32 units of rounding, each at random, in float64."""
    classifier, images = copy.deepcopy(typical).double(), digits_from(2000, 16).images
    bounds, seen = condition(classifier, images)["typicality_score"], classifier.inspect(images)
    generator, typicality = torch.Generator().manual_seed(0), classifier.typicality
    assert typicality is not None

    def score(moved: Seen) -> torch.Tensor:
        features = classifier.encoder.projection(moved.pooled)
        posterior = classifier.head.served(1.0, 1.0, torch.zeros(10))(features)[0]
        return typicality(moved, features, posterior)

    for _ in range(20):
        off = (2.0**-19 * torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in seen)
        moved = Seen(*(part * (1 + error) for part, error in zip(seen, off, strict=True)))
        assert ((score(moved) - score(seen)).abs() <= 4 * bounds).all()


@pytest.mark.isa
def test_typicality_in_float32_stays_within_half_of_the_bound(typical: Classifier) -> None:
    exact, images = copy.deepcopy(typical).double(), torch.cat([GOLDEN, digits_from(1600, 100).images])
    at = ServedGraph(typical).output_names.index("typicality_score")

    with torch.inference_mode():
        before, after = (ServedGraph(one)(images)[at] for one in (exact, typical))
        bounds = condition(exact, images)["typicality_score"]

    assert ((after - before).abs() <= 0.5 * bounds).all()
    assert bounds.max() < 1e-3


@pytest.mark.isa
def test_float32_stays_within_half_of_the_bound(refitted: dict[str, Classifier]) -> None:
    for name, classifier in refitted.items():
        exact = copy.deepcopy(classifier).double()
        bounds = condition(exact, GOLDEN)
        graphs = (ServedGraph(exact), ServedGraph(classifier))
        with torch.inference_mode():
            before, after = (graph(GOLDEN) for graph in graphs)
        for output, ours, theirs in zip(classifier.head.outputs, before, after, strict=True):
            absolute, relative = TOLERANCES["float32"][output]
            allowed = absolute + relative * ours.abs()
            measured, bound = ((off / allowed).max() for off in ((theirs - ours).abs(), bounds[output]))
            assert measured <= 0.5 * bound, f"{output} of {name}"


def test_mixtures_of_real_digits_are_accepted(refitted: dict[str, Classifier]) -> None:
    for classifier in refitted.values():
        answers = require_condition(classifier, GOLDEN)

        assert {answer.dtype for answer in answers.values()} == {np.dtype(np.float64)}


def test_steep_head_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ParityError,
        match=r"^posterior in float32 must be within 0\.0001 of float64, got up to 0\.1\d apart: float32 cannot "
        r"hold so steep a head; try a larger refit\.ridge$",
    ):
        require_condition(steep(1e3), GOLDEN)


def test_same_heads_are_refused_on_a_smaller_cpu() -> None:
    code = "import json, test_condition; print(json.dumps(test_condition.decisions()))"
    environment = {**os.environ, **SMALLER_CPU, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}

    there = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)

    here = decisions()
    assert json.loads(there.stdout) == here
    assert (here[0], here[-1]) == (True, False)
    assert here == sorted(here, reverse=True)
