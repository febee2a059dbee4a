"""Runs on disk and whole trainings, a killed one among them."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_samples import (
    FOLDER_DATA,
    PRECISION,
    begun,
    digits,
    logged_epochs,
    same_weights,
    small_recipe,
    write_digit_folder,
)

from training import fit as fit_module
from training import image_files as image_files_module
from training.classifier import Architecture, Classifier, build_classifier
from training.data import DataError, Sources
from training.devices import describe_device
from training.fit import DivergedError
from training.image_files import in_memory
from training.images import images_of, load_images, sources_of
from training.recipe import EncoderSpec, HeadSpec, Recipe, dump_recipe, load_recipe
from training.refit import refit
from training.run import Run, RunError
from training.splits import split
from training.train import architecture_of, train

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred and twenty real digits of three classes; read only."""
    return write_digit_folder(tmp_path_factory.mktemp("images") / "some-digits")


def recipe_for_folder(**sections: dict) -> Recipe:
    refit = {"head": "mda", "dim": 4, "components": 2, "covariance": "diagonal"}
    return small_recipe(**({"data": FOLDER_DATA, "refit": refit} | sections))


def new_run(runs: Path, recipe: Recipe | None = None, run_id: str = "one") -> Run:
    return Run.create("small", recipe or recipe_for_folder(), run_id, runs)


# Creating and opening


def test_run_is_a_folder_with_the_resolved_recipe(tmp_path: Path) -> None:
    recipe = small_recipe(seed=7, fit={"lr": 0.5})

    run = begun(Run.create("small", recipe, "one", tmp_path))

    assert run.path == tmp_path / "small" / "one"
    assert run.name == "small"
    assert load_recipe(str(run.path / "recipe.toml"))[1] == recipe
    assert Run.open(run.path) == Run(run.path, recipe)


def test_run_has_no_folder_before_it_begins(tmp_path: Path) -> None:
    run = new_run(tmp_path)

    assert not run.has_begun
    assert list(tmp_path.iterdir()) == []


def test_runs_without_an_id_are_named_after_the_time(tmp_path: Path) -> None:
    first, second = (Run.create("small", small_recipe(), None, tmp_path).path.name for _ in range(2))

    assert first < second
    assert time.strptime(first[:15], "%Y%m%d-%H%M%S")


def test_run_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    unborn = new_run(tmp_path)
    path = begun(new_run(tmp_path)).path

    for refused in (lambda: new_run(tmp_path), lambda: begun(unborn)):
        with pytest.raises(RunError) as caught:
            refused()
        assert str(caught.value) == (
            f"run must be new, got {path}, which is there: go on with --resume {path} or name another"
        )


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        Run.open(tmp_path / "none")

    assert str(caught.value) == (
        f"run must be a folder runs/<recipe>/<id> with a recipe.toml and a run.json, got {tmp_path / 'none'}"
    )


def test_run_may_be_opened_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(new_run(tmp_path))
    monkeypatch.chdir(tmp_path / "small" / "one")

    assert Run.open(Path()).name == "small"


# What a run keeps


def test_epoch_takes_the_place_of_its_line_and_of_later_ones(tmp_path: Path) -> None:
    run = begun(new_run(tmp_path))
    for epoch in (1, 2, 3, 4):
        run.log_epoch({"epoch": epoch, "loss": 0.5})

    run.log_epoch({"epoch": 3, "loss": 0.25})

    assert run.epochs() == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.5}, {"epoch": 3, "loss": 0.25}]


def test_no_epoch_is_there_before_the_first(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert run.description() == {}

    begun(run)

    assert run.epochs() == []
    assert run.load_checkpoint() is None


def test_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(new_run(tmp_path))
    run.save_checkpoint({"epoch": 1, "weights": torch.arange(3.0)})

    def disk_full(state: object, out: object) -> None:
        out.write(b"the first bytes of a checkpoint")  # type: ignore[attr-defined]
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="no space"):
        run.save_checkpoint({"epoch": 2, "weights": torch.zeros(3)})
    monkeypatch.undo()

    state = run.load_checkpoint()
    assert state is not None
    assert (state["epoch"], state["weights"].tolist()) == (1, [0.0, 1.0, 2.0])


def test_checkpoint_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(new_run(tmp_path))
    run.save_checkpoint({"epoch": 1})
    seen, save = [], torch.save

    def save_and_look(state: object, out: object) -> None:
        save(state, out)
        seen.append(run.load_checkpoint())

    monkeypatch.setattr(torch, "save", save_and_look)
    run.save_checkpoint({"epoch": 2})

    assert seen == [{"epoch": 1}]
    assert run.load_checkpoint() == {"epoch": 2}
    assert sorted(file.name for file in run.path.iterdir()) == [
        "checkpoint.pt",
        "recipe.toml",
        "run.json",
        "splits.npz",
    ]


@pytest.mark.parametrize(
    ("encoder", "head"),
    [
        (EncoderSpec(dim=3, width=4), HeadSpec(kind="lda", covariance="full")),
        (EncoderSpec(kind="mlp", dim=3, hidden=(8, 4), dropout=0.5), HeadSpec(kind="mda", components=2)),
        (EncoderSpec(kind="linear", dim=3), HeadSpec(kind="lda", covariance="diagonal", simplex=True)),
        (EncoderSpec(kind="none", dim=64), HeadSpec(kind="softmax")),
    ],
)
def test_saved_classifier_is_loaded_bit_for_bit(tmp_path: Path, encoder: EncoderSpec, head: HeadSpec) -> None:
    run = begun(new_run(tmp_path))
    torch.manual_seed(0)
    classifier = build_classifier(Architecture((1, 8, 8), 3, encoder, head))
    classifier.learn_normalisation(digits().images)
    classifier.class_biases = torch.tensor([0.1, -0.2, 0.1])

    run.save_classifier(classifier)
    loaded = run.load_classifier()

    assert same_weights(loaded, classifier)
    assert torch.equal(loaded.class_biases, classifier.class_biases)
    assert loaded.architecture == classifier.architecture
    assert not loaded.training


def test_refitted_classifier_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    """The refit turns the encoder `none` into a projection, the head lda into mda."""
    run, recipe = (
        begun(new_run(tmp_path)),
        recipe_for_folder(refit={"dim": 5, "components": 2, "covariance": "diagonal", "restarts": 1}),
    )
    before = build_classifier(Architecture((1, 8, 8), 10, EncoderSpec(kind="none", dim=64), HeadSpec(kind="lda")))
    classifier = refit(before, recipe.refit, digits().images[:500], digits().labels[:500], seed=0)

    run.save_classifier(classifier)

    assert same_weights(run.load_classifier(), classifier)


def test_unfinished_run_has_no_classifier(tmp_path: Path) -> None:
    run = begun(new_run(tmp_path))

    with pytest.raises(RunError) as caught:
        run.load_classifier()

    assert str(caught.value) == (
        f"run must be finished, got {run.path} without classifier.pt: go on with --resume {run.path}"
    )


def test_description_says_what_was_trained_on(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    splits = split(digits(), validation=0.1, test=0.2, seed=0)

    run.begin(digits(), splits, Sources(folder=tmp_path / "x" / ".."), CPU, PRECISION)

    description = run.description()
    assert description["dataset"] == {
        "name": "digits",
        "splits": {"train": 3440, "validation": 383, "test": 1797},
        "fingerprint": digits().fingerprint(),
    }
    assert description["classes"] == list("0123456789")
    assert description["input"]["height"] == 8
    assert description["folder"] == str(tmp_path)
    assert description["device"] == "CPU, 1 thread" == describe_device(CPU)
    assert description["precision"] == {"chosen": "float32", "why": "the recipe names it"}
    assert description["versions"]["torch"] == str(torch.__version__)
    with np.load(run.path / "splits.npz") as recorded:
        assert set(recorded.files) == set(splits)
        assert all(np.array_equal(recorded[name], splits[name]) for name in splits)


def test_other_images_than_those_of_the_run_are_refused(tmp_path: Path) -> None:
    run = begun(new_run(tmp_path))
    others = type(digits())(**(vars(digits()) | {"labels": digits().labels.flip(0)}))

    run.require_same_images(digits())
    with pytest.raises(RunError) as caught:
        run.require_same_images(others)

    before, found = digits().fingerprint()[:12], others.fingerprint()[:12]
    assert str(caught.value) == (
        f"images must be those that {run.path} was trained on (fingerprint {before}), "
        f"got others ({found}): put them back, or train a new run"
    )


# Where the images come from


def test_sources_are_the_runs_own_unless_others_are_given(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    before = sources_of(run, Path("root"))
    run.begin(digits(), {}, Sources(folder=tmp_path), CPU, PRECISION)

    assert before == Sources(Path("root"), None)
    assert sources_of(run, Path("root")) == Sources(Path("root"), tmp_path)
    assert sources_of(run, Path("root"), Path("mine")) == Sources(Path("root"), Path("mine"))


def test_unknown_split_is_refused(folder: Path) -> None:
    images = load_images(recipe_for_folder(), Sources(folder=folder))

    assert len(images.part("validation", CPU)) == 18
    with pytest.raises(DataError, match=r"^split must be one of train, validation, test, got 'dev'$"):
        images.part("dev", CPU)


def test_the_seed_changes_the_validation_split_and_never_the_test_split(folder: Path) -> None:
    def splits(seed: int = 0, **data: int) -> dict[str, list[int]]:
        recipe = recipe_for_folder(data=FOLDER_DATA | data).model_copy(update={"seed": seed})
        return {name: part.tolist() for name, part in load_images(recipe, Sources(folder=folder)).splits.items()}

    first, other_seed, other_split = splits(), splits(seed=1), splits(split_seed=1)

    assert first == splits()
    assert first["test"] == other_seed["test"] != other_split["test"]
    assert first["validation"] != other_seed["validation"]


def test_run_goes_on_with_the_splits_that_it_was_begun_with(folder: Path, tmp_path: Path) -> None:
    sources = Sources(folder=folder)
    images, run = load_images(recipe_for_folder(), sources), new_run(tmp_path)
    before = {name: images.splits[name] for name in ("test", "train", "validation")}  # cut by other rules, say
    before["train"], before["validation"] = before["train"][3:], torch.cat([before["train"][:3], before["validation"]])
    run.begin(images.dataset, before, sources, CPU, PRECISION)

    classifier = train(run, sources, CPU)

    found = images_of(run, sources).splits
    assert list(found) == list(before)
    assert all(torch.equal(found[name], before[name]) for name in before)
    pixels = in_memory(images.dataset.images[before["train"]]).double()
    assert classifier.mean.item() == pytest.approx(pixels.mean().item(), rel=1e-6)


def test_recipe_of_a_run_from_before_there_was_a_split_seed_keeps_its_test_split(tmp_path: Path) -> None:
    run = begun(new_run(tmp_path, small_recipe(seed=4)))
    file = run.path / "recipe.toml"
    assert Run.open(run.path).recipe.data.split_seed == 0
    file.write_text(file.read_text().replace("split_seed = 0\n", ""))

    recipe = Run.open(run.path).recipe

    assert (recipe.seed, recipe.data.split_seed) == (4, 4)


# Whole trainings


def trained(run: Run, folder: Path) -> Classifier:
    return train(run, Sources(folder=folder), CPU)


@pytest.mark.isa
def test_training_writes_a_classifier_that_knows_the_images(tmp_path: Path, folder: Path) -> None:
    run = new_run(tmp_path, recipe_for_folder(fit={"epochs": 15}))

    classifier = trained(run, folder)

    images = load_images(run.recipe, Sources(folder=folder))
    test = images.part("test", CPU)
    assert same_weights(run.load_classifier(), classifier)
    assert classifier.architecture == architecture_of(run.recipe, images.dataset).__class__(
        (1, 8, 8), 3, run.recipe.encoder.model_copy(update={"dim": 4}),
        HeadSpec(kind="mda", components=2, covariance="diagonal"),
    )  # fmt: skip
    assert (classifier(test.images).log_joints.argmax(1) == test.labels).float().mean() > 0.9
    assert logged_epochs(run.path) == list(range(1, 16))
    pixels = images.part("train", CPU).images.double()
    assert classifier.mean.item() == pytest.approx(pixels.mean().item())
    assert {file.name for file in run.path.iterdir()} == {
        "recipe.toml", "run.json", "splits.npz", "metrics.jsonl", "checkpoint.pt", "classifier.pt",
    }  # fmt: skip


@pytest.mark.isa
def test_same_seed_trains_the_same_classifier(tmp_path: Path, folder: Path) -> None:
    first, again = (trained(new_run(tmp_path, run_id=name), folder) for name in ("one", "two"))
    other = trained(new_run(tmp_path, recipe_for_folder().model_copy(update={"seed": 1}), "three"), folder)

    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_finished_run_may_be_resumed_to_the_same_classifier(tmp_path: Path, folder: Path) -> None:
    run = new_run(tmp_path)
    first = trained(run, folder)

    assert same_weights(trained(Run.open(run.path), folder), first)
    assert logged_epochs(run.path) == [1, 2]


@pytest.mark.isa
def test_run_that_starts_from_another_only_refits(tmp_path: Path, folder: Path) -> None:
    first = new_run(tmp_path)
    before = trained(first, folder)
    at_an_earlier_time(first)

    run = Run.create("small", recipe_for_folder(refit={"dim": 2}), "two", tmp_path, start=first)
    after = train(run, sources_of(run, Path("data")), CPU)

    assert run.epochs() == first.epochs()
    assert after.architecture.head.components == 1
    assert same_weights(after.encoder.trunk, before.encoder.trunk)
    assert run.description()["epochs_from"] == str(first.path)
    assert (run.description()["device"], run.description()["started"][:4]) == ("a slide rule", "1999")
    assert run.description()["taken_over"]["device"].startswith("CPU")
    assert run.description()["taken_over"]["started"] > "2026"
    assert "epochs_from" not in first.description()


def at_an_earlier_time(run: Run) -> None:
    """Say that the run was begun in 1999, on another device."""
    text = json.dumps(run.description() | {"started": "1999-01-01T00:00:00+00:00", "device": "a slide rule"})
    (run.path / "run.json").write_text(text)


def test_resumed_run_keeps_when_and_on_what_it_was_begun(tmp_path: Path, folder: Path) -> None:
    run = interrupted(new_run(tmp_path, recipe_for_folder(fit={"epochs": 3})), folder, after_epoch=2)
    at_an_earlier_time(run)
    before = run.description()

    trained(Run.open(run.path), folder)
    trained(Run.open(run.path), folder)

    after = run.description()
    resumed = after.pop("resumed")
    assert after == before
    assert [line["after_epoch"] for line in resumed] == [2, 3]
    assert all(line["at"] > "2026" and line["device"] == "CPU, 1 thread" for line in resumed)
    assert resumed[0]["precision"] == {"chosen": "float32", "why": "the recipe names it"}


def interrupted(run: Run, folder: Path, after_epoch: int) -> Run:
    """The run as Ctrl-C leaves it after an epoch's checkpoint."""
    save = Run.save_checkpoint

    def dies(self: Run, state: dict[str, Any]) -> None:
        save(self, state)
        if state["epoch"] == after_epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(run, folder)
    return run


def test_run_cannot_start_from_one_that_trained_otherwise(tmp_path: Path, folder: Path) -> None:
    first = begun(new_run(tmp_path, run_id="never"))
    with pytest.raises(RunError, match=r"must have trained an epoch, got .* without a checkpoint"):
        Run.create("small", recipe_for_folder(), "none", tmp_path, start=first)
    first = new_run(tmp_path)
    trained(first, folder)

    with pytest.raises(RunError, match=r"must have fit = \(.*lr=0.5.*\), got .*one with \(.*lr=0.01.*\)"):
        Run.create("small", recipe_for_folder(fit={"lr": 0.5}), "other", tmp_path, start=first)

    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["never", "one"]


def test_resume_on_other_images_is_refused(tmp_path: Path, folder: Path) -> None:
    run = new_run(tmp_path)
    trained(run, folder)
    description = (run.path / "run.json").read_bytes()
    other = write_digit_folder(tmp_path / "other", per_class=41)

    with pytest.raises(RunError, match=rf"^images must be those that {run.path} was trained on"):
        trained(run, other)
    assert (run.path / "run.json").read_bytes() == description


def test_other_images_than_those_of_the_run_to_start_from_are_refused(tmp_path: Path, folder: Path) -> None:
    first = new_run(tmp_path)
    trained(first, folder)
    run = Run.create("small", recipe_for_folder(refit={"dim": 2}), "two", tmp_path, start=first)

    with pytest.raises(RunError, match=rf"^images must be those that {first.path} was trained on"):
        trained(run, write_digit_folder(tmp_path / "other", per_class=41))
    assert not run.has_begun


def test_training_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    write_digit_folder(tmp_path / "one-class", "3")
    runs = tmp_path / "runs"

    for sources in (Sources(), Sources(folder=tmp_path / "none"), Sources(folder=tmp_path / "one-class")):
        with pytest.raises(DataError):
            train(new_run(runs), sources, CPU)
    assert not runs.exists()


def test_interruption_while_images_are_read_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_digit_folder(tmp_path / "never-read")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(image_files_module, "read_open_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained(new_run(tmp_path), folder)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.isa
@pytest.mark.parametrize("dies_in", ["log_epoch", "save_checkpoint"])
def test_interrupted_training_goes_on_to_the_same_weights(
    dies_in: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interruption comes before the third epoch's line is written, or between the line and its checkpoint."""
    recipe = recipe_for_folder(fit={"epochs": 4, "schedule": "one-cycle", "crop_padding": 1, "flip": True})
    whole_run, run = new_run(tmp_path, recipe, "whole"), new_run(tmp_path, recipe, "interrupted")
    whole = trained(whole_run, folder)
    calls, original = itertools.count(1), getattr(Run, dies_in)

    def dies_at_the_third(*arguments: object) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(Run, dies_in, dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        trained(run, folder)
    monkeypatch.undo()
    resumed = trained(Run.open(run.path), folder)

    assert same_weights(resumed, whole)
    assert [line["after_epoch"] for line in run.description()["resumed"]] == [2]
    assert logged_epochs(run.path) == [1, 2, 3, 4]
    assert [timeless(line) for line in run.epochs()] == [timeless(line) for line in whole_run.epochs()]


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("seconds", "images_per_s")}


def test_divergence_keeps_the_last_good_checkpoint(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """72 images are two steps an epoch; the fourth step's loss is no number."""
    run, calls, build_loss = new_run(tmp_path), itertools.count(1), fit_module.build_loss
    monkeypatch.setattr(
        fit_module,
        "build_loss",
        lambda *spec: lambda *batch: build_loss(*spec)(*batch) * (math.nan if next(calls) == 4 else 1),
    )

    with pytest.raises(DivergedError, match=r"got nan in epoch 2, step 2: the last good checkpoint is kept"):
        trained(run, folder)

    state = run.load_checkpoint()
    assert state is not None
    assert state["epoch"] == 1
    assert logged_epochs(run.path) == [1]


def test_killed_training_resumes_to_the_same_weights(tmp_path: Path, folder: Path) -> None:
    """SIGKILL somewhere in the middle of a real process, then --resume."""
    recipe = recipe_for_folder(fit={"epochs": 40, "crop_padding": 1, "schedule": "one-cycle"})
    whole = trained(new_run(tmp_path, recipe, "whole"), folder)
    file = tmp_path / "small.toml"
    file.write_text(dump_recipe(recipe))

    run = kill_in_epoch(4, tmp_path, "train", file, "--data", folder, "--id", "killed", "--device", "cpu")
    survived = logged_epochs(run)
    resumed = trained(Run.open(run), folder)

    assert 4 <= len(survived) < 40
    assert logged_epochs(run) == list(range(1, 41))
    assert same_weights(resumed, whole)


def kill_in_epoch(epoch: int, cwd: Path, *arguments: object) -> Path:
    """Start `python -m training` and kill it once it has logged an epoch; the run's folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    metrics = cwd / "runs" / "small" / "killed" / "metrics.jsonl"
    try:
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= epoch):
            time.sleep(0.005)
    finally:
        process.kill()
        output = process.communicate()[0].decode()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"training must be killed before its end, got exit code {process.returncode}: {output}")
    return metrics.parent


def test_run_json_and_metrics_are_json(tmp_path: Path, folder: Path) -> None:
    run = new_run(tmp_path)
    trained(run, folder)

    assert json.loads((run.path / "run.json").read_text())["dataset"]["name"] == "some-digits"
    assert all(line.keys() == run.epochs()[0].keys() for line in run.epochs())
    assert {"loss", "train_accuracy", "validation_accuracy", "validation_nll", "lr"} < run.epochs()[0].keys()


@pytest.mark.parametrize(
    ("refit", "message"),
    [
        (
            {"dim": 4, "components": 30},
            r"^refit.components must be less than the images of every class \(\d+\), got 30",
        ),
        ({"dim": 17}, r"^refit.dim must be at most the number of pooled features \(16\) .*, got 17"),
    ],
)
def test_refit_that_cannot_be_is_refused_before_the_training(
    tmp_path: Path, folder: Path, refit: dict[str, Any], message: str
) -> None:
    run = Run.create("small", small_recipe(data=FOLDER_DATA, refit=refit), "one", tmp_path)

    with pytest.raises(ValueError, match=message):
        trained(run, folder)

    assert list(tmp_path.iterdir()) == []
