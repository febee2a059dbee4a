"""When a network should not decide: figures of a real run and of simulated p-values, and thresholds of a run."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from training_samples import small_recipe

from serving.held_out import HeldOut
from training.analysis import abstention
from training.analysis.abstention import abstention_figures, thresholds_of, typicality_figures
from training.analysis.evidence import Answers, Evidence, gather
from training.data import Sources
from training.run import Run, RunError
from training.train import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny run on digits."""
    run = Run.create("small", small_recipe(), "a", tmp_path_factory.mktemp("runs"))
    train(run, Sources(), CPU)
    return run


@pytest.fixture(scope="module")
def evidence(run: Run) -> Evidence:
    return gather(run, Sources(), CPU, sample=500)


def with_splits(run: Run, folder: Path, *, calibration: bool) -> Run:
    """The same run as if its test images were held out, a third of them for calibration if so wished."""
    path = folder / "small" / f"split-{calibration}"
    shutil.copytree(run.path, path)
    splits = {name: part.numpy() for name, part in run.splits().items()}
    order = np.random.default_rng(0).permutation(splits["test"])
    cut = len(order) // 3 if calibration else 0
    held_out = {"held_out": order[cut:]} | ({"calibration": order[:cut]} if calibration else {})
    np.savez(path / "splits.npz", **splits, **held_out)  # type: ignore[arg-type]
    return Run.open(path)


# Figures


def test_curve_and_areas_are_of_the_test_split(evidence: Evidence) -> None:
    figures = abstention_figures(evidence)

    posterior, labels = evidence.test.outputs["posterior"], evidence.test.labels
    order = np.argsort(-posterior.max(1), kind="stable")
    wrong = (posterior.argmax(1) != labels)[order]
    risk = wrong.cumsum() / np.arange(1, 1798)
    assert figures["images"] == 1797
    assert figures["error"] == pytest.approx(wrong.mean(), abs=1e-6)
    assert figures["aurc"] == pytest.approx(risk.mean(), abs=1e-4)  # some images are as sure as one another
    assert figures["e_aurc"] == pytest.approx(figures["aurc"] - figures["best_aurc"], abs=2e-6)
    assert 0 < figures["e_aurc"] < figures["aurc"] < figures["error"]
    assert figures["at"]["0.9"] == pytest.approx(wrong[:1617].mean(), abs=1e-3)
    assert figures["at"]["1.0"] == figures["error"] == figures["curve"]["risk"][-1]
    assert figures["curve"]["coverage"][-1] == 1
    assert len(figures["curve"]["coverage"]) == len(figures["curve"]["risk"]) == 200
    assert (figures["sets"], figures["groups"], figures["typicality"]) == (None, None, None)


def test_sets_and_typicality_are_judged_where_images_were_held_out(evidence: Evidence) -> None:
    """Half of the test images are held out; what stands for a typicality is the log-density."""
    outputs = evidence.test.outputs | {"typicality_score": evidence.test.outputs["log_density"]}
    half = np.arange(1797) % 2 == 0
    own = outputs["posterior"][np.arange(1797), evidence.test.labels]
    scores = np.sort(outputs["typicality_score"][half])
    held_out = HeldOut(scores, own[half], evidence.test.labels[half], np.zeros(10, np.int64))
    rest = Answers(
        evidence.test.images, evidence.test.labels[~half], {name: out[~half] for name, out in outputs.items()}
    )

    figures = abstention_figures(replace(evidence, test=rest, held_out=held_out))

    for coverage, found in figures["sets"].items():
        assert found["images"] == 898
        least = max(float(coverage), 1 - figures["error"])  # the likeliest label is always there
        assert found["coverage"] == pytest.approx(least, abs=0.04)
    typicality = figures["typicality"]
    assert figures["groups"] == 1
    assert (typicality["images"], typicality["held_out"]) == (898, 899)
    assert typicality["below"]["0.05"]["share"] == pytest.approx(0.05, abs=0.02)
    assert typicality["below"]["0.05"]["interval"][0] < typicality["below"]["0.05"]["share"]


def test_p_values_of_the_same_kind_are_within_their_bands() -> None:
    """Of 200 draws of 500 held-out and 400 other images, 95 % of the bars are within the band, by simulation."""
    rng, inside, bars = np.random.default_rng(0), 0, 0
    for _ in range(200):
        ranks = np.searchsorted(np.sort(rng.random(500)), rng.random(400), side="right")
        figures = typicality_figures((1 + ranks) / 501, 500)
        count, low, high = (np.array(figures[key]) for key in ("count", "low", "high"))
        inside += int(((low <= count) & (count <= high)).sum())
        bars += len(count)

    assert sum(figures["count"]) == 400
    assert bars == 200 * 20
    assert 0.94 < inside / bars < 0.98  # a discrete band holds a little more than it should


def test_p_values_are_counted_by_hand() -> None:
    """Of three held-out images p-values are 1/4 to 1: four bars."""
    figures = typicality_figures(np.array([0.25, 0.25, 0.5, 1.0, 1.0]), 3)

    assert figures["edges"] == [0, 0.25, 0.5, 0.75, 1]
    assert figures["count"] == [2, 1, 0, 2]
    assert figures["below"]["0.05"]["share"] == 0


def test_few_held_out_images_have_bars_of_whole_p_values() -> None:
    figures = typicality_figures(np.arange(1, 31) / 30, 29)

    assert figures["edges"][:4] == [0, round(1 / 30, 6), 0.1, round(4 / 30, 6)]
    assert len(figures["count"]) == 20
    assert sum(figures["count"]) == 30
    assert figures["count"][:3] == [1, 2, 1]


# Thresholds


@pytest.mark.parametrize("calibration", [True, False])
def test_thresholds_of_a_run_hold_on_its_held_out_images(run: Run, tmp_path: Path, calibration: bool) -> None:
    split = with_splits(run, tmp_path, calibration=calibration)

    found = thresholds_of(split, Sources(), CPU, error=0.1)

    assert found.images == (1198 if calibration else 1797 - 359)
    assert found.holds
    assert binomtest(found.wrong, found.accepted, 0.1, alternative="less").pvalue < 0.05
    assert found.typicality is None
    assert found.parameters == {"accept": {"probability": found.probability}}


@pytest.mark.parametrize("calibration", [True, False])
def test_typicality_is_among_the_held_out_images(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibration: bool
) -> None:
    """What stands for a typicality is the log-density."""
    split, answer = with_splits(run, tmp_path, calibration=calibration), abstention.answers_of

    def with_typicality(*arguments: object) -> Answers:
        answers = answer(*arguments)  # type: ignore[arg-type]
        return replace(answers, outputs=answers.outputs | {"typicality_score": answers.outputs["log_density"]})

    monkeypatch.setattr(abstention, "answers_of", with_typicality)

    found = thresholds_of(split, Sources(), CPU, error=0.999, typicality=0.25)

    assert found.probability == 0
    assert found.accepted == pytest.approx(0.75 * found.images, abs=25)  # of a fifth that is left out too
    assert found.parameters == {"accept": {"probability": 0.0, "typicality": 0.25}}


def test_run_that_holds_nothing_out_is_refused(run: Run) -> None:
    message = r"^run must hold images out, got .* with the splits train, validation, test: train it anew from a recipe"

    with pytest.raises(RunError, match=message):
        thresholds_of(run, Sources(), CPU, error=0.1)
