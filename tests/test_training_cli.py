"""The command line of training, in this process but for one command that is run as a user runs it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from training_samples import FOLDER_DATA, logged_epochs, small_recipe, write_digit_folder
from typer.main import get_command

from serving.bundle import Bundle
from training.__main__ import app, main
from training.recipe import dump_recipe, recipe_names
from training.run import Run

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "recipes",
    "train",
    "evaluate",
    "export",
    "samples",
    "name",
    "report",
    "thresholds",
    "sweep",
    "study",
    "benchmark",
)


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands run: some-digits/ with images, small.toml; the tests add runs of their own."""
    work = tmp_path_factory.mktemp("work")
    write_digit_folder(work / "some-digits")
    refit = {"dim": 4, "components": 2, "ridge": 0.01}
    recipe = small_recipe(data=FOLDER_DATA, encoder={"kind": "linear"}, fit={"epochs": 8}, refit=refit)
    (work / "small.toml").write_text(dump_recipe(recipe))
    return work


@pytest.fixture
def cli(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `python -m training ...` in `work`."""
    monkeypatch.chdir(work)

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = (re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr())
        return Answer(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def finished(cli: Cli, work: Path) -> Path:
    """A finished run, relative to `work`; read only."""
    run = Path("runs/small/finished")
    if not (work / run / "classifier.pt").exists():
        answer = cli("train", "small.toml", "--data", "some-digits", "--id", "finished", "--device", "cpu")
        assert answer.code == 0
    return run


@pytest.fixture
def exported(cli: Cli, work: Path, finished: Path) -> Path:
    """The finished run's bundle, relative to `work`; read only."""
    bundle = Path("model_store/small/1")
    if not (work / bundle).exists():
        assert cli("export", finished).code == 0
    return bundle


def assert_one_line(answer: Answer, message: str) -> None:
    """An error as a person sees it: what is wrong in a single line, and nothing of the program's insides."""
    assert answer.code == 1
    assert re.fullmatch(rf"error: {message}\n", answer.err)


# Help and recipes


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, cli: Cli) -> None:
    answer = cli(command, "--help")

    assert answer.code == 0
    assert re.match(rf"\s*Usage: .*training {command} \[OPTIONS\]", answer.out)
    assert len(answer.out.split()) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loses_no_word(command: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in square brackets would be taken for markup."""
    monkeypatch.setenv("COLUMNS", "1000")
    explained = get_command(app).commands[command]  # type: ignore[attr-defined]

    shown = " ".join(cli(command, "--help").out.split())

    for text in (explained.help, *(parameter.help for parameter in explained.params)):
        assert " ".join(text.split()) in shown


def test_help_lists_every_command(cli: Cli) -> None:
    answer = cli("--help")

    assert all(re.search(rf"^.\s{command}\s", answer.out, re.MULTILINE) for command in COMMANDS)


def test_recipes_are_listed(cli: Cli) -> None:
    answer = cli("recipes")

    assert answer.code == 0
    assert all(name in answer.out for name in recipe_names())
    assert "mda K=2" in answer.out
    assert "python -m training train RECIPE" in answer.out


# Training


def test_training_reports_every_epoch_and_what_to_do_next(cli: Cli, work: Path) -> None:
    answer = cli("train", "small.toml", "--data", "some-digits", "--id", "reported", "--epochs", 3, "--seed", 5)

    assert answer.code == 0
    assert re.match(r"training small into runs/small/reported on .* in float32: the recipe names it\n", answer.out)
    assert re.findall(r"^epoch +(\d)/3 +loss +\d+\.\d+ +train +\d+\.\d+% +validation +\d+\.\d+%", answer.out, re.M) == [
        "1",
        "2",
        "3",
    ]
    assert answer.out.endswith("finished: export it with  python -m training export runs/small/reported\n")
    assert logged_epochs(work / "runs/small/reported") == [1, 2, 3]


def test_options_are_written_into_the_runs_recipe(cli: Cli, work: Path) -> None:
    answer = cli(
        "train", "small.toml", "--data", "some-digits", "--id", "options", "--epochs", 1, "--seed", 5,
        "--set", "fit.lr=0.5", "--set", "fit.optimizer=sgd",
    )  # fmt: skip

    recipe = Run.open(work / "runs/small/options").recipe
    assert answer.code == 0
    assert (recipe.fit.epochs, recipe.seed, recipe.fit.lr, recipe.fit.optimizer) == (1, 5, 0.5, "sgd")
    assert recipe.data.name == "folder"


def test_folder_of_images_takes_the_place_of_a_recipes_data_set(cli: Cli, work: Path) -> None:
    settings = ["data.channels=1", "data.size=8", "encoder.width=4", "refit.dim=4", "fit.epochs=1"]
    overrides = [argument for setting in settings for argument in ("--set", setting)]

    answer = cli("train", "digits-mda", "--data", "some-digits", "--id", "own", *overrides)

    assert answer.code == 0
    assert Run.open(work / "runs/digits-mda/own").description()["dataset"]["name"] == "some-digits"


def test_photos_without_a_recipe_are_trained_on_a_backbone(cli: Cli, work: Path) -> None:
    for label, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (work / "photos" / label).mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng(number).integers(0, 56, (100, 96 + number, 3)) + colour
            Image.fromarray(pixels.astype(np.uint8)).save(work / "photos" / label / f"{number}.jpg")

    answer = cli("train", "--data", "photos", "--id", "chosen")

    assert answer.code == 0
    assert answer.out.startswith(
        "recipe images, for the median image's shorter side is 98 pixels, at least 96\n"
        "the other one is taken by  python -m training train images-small --data photos\n"
    )
    assert Run.open(work / "runs/images/chosen").description()["dataset"]["splits"] == {
        "train": 8, "validation": 0, "test": 2,
    }  # fmt: skip
    evaluated = cli("evaluate", "runs/images/chosen", "--json")
    assert json.loads(evaluated.out)["accuracy"] == 1.0
    (work / "photos" / "blue" / "4.jpg").write_bytes(b"")
    refused = cli("train", "--data", "photos")
    assert refused.code == 1
    assert refused.err.splitlines() == [
        "photos: 1 of 10 files cannot be read and are left out: blue/4.jpg: image must not be empty, got 0 bytes",
        "error: every class of photos must have at least 5 different images for this recipe, got blue with 4: "
        "add images, or leave the class out",
    ]


def test_small_pictures_without_a_recipe_are_trained_on_from_scratch(cli: Cli, work: Path) -> None:
    settings = ["encoder.width=4", "encoder.dim=4", "refit.dim=4", "fit.epochs=1", "fit.scales=[0.25]"]
    overrides = [argument for setting in settings for argument in ("--set", setting)]

    answer = cli("train", "--data", "some-digits", "--id", "chosen", *overrides)

    assert answer.code == 0
    assert answer.out.startswith(
        "recipe images-small, for the median image's shorter side is 8 pixels, less than 96\n"
        "the other one is taken by  python -m training train images --data some-digits\n"
    )
    assert (work / "runs/images-small/chosen/classifier.pt").is_file()


def test_interrupted_run_is_resumed(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Run.save_checkpoint

    def dies(run: Run, state: dict) -> None:
        save(run, state)
        if state["epoch"] == 3:
            raise ValueError("pulled the plug")

    monkeypatch.setattr(Run, "save_checkpoint", dies)
    assert_one_line(cli("train", "small.toml", "--data", "some-digits", "--id", "resumed"), "pulled the plug")
    monkeypatch.setattr(Run, "save_checkpoint", save)
    answer = cli("train", "--resume", "runs/small/resumed")

    assert answer.code == 0
    assert "epoch   3/8" not in answer.out
    assert "epoch   4/8" in answer.out
    assert logged_epochs(work / "runs/small/resumed") == list(range(1, 9))


@pytest.mark.parametrize("arguments", [(), ("--data", "lost"), ("--data", "some-digits/0")])
def test_refused_training_leaves_no_run(arguments: tuple[str, ...], cli: Cli, work: Path) -> None:
    """No folder named, none there, no class folders in it."""
    assert cli("train", "small.toml", "--id", "refused", *arguments).code == 1

    assert not (work / "runs/small/refused").exists()


def test_epochs_of_another_run_are_taken(cli: Cli, finished: Path, work: Path) -> None:
    answer = cli(
        "train", "small.toml", "--data", "some-digits", "--from", finished, "--id", "taken", "--set", "refit.dim=2"
    )

    assert answer.code == 0
    assert "epoch " not in answer.out
    assert Run.open(work / "runs/small/taken").description()["epochs_from"] == str(work / finished)


def test_resume_takes_no_other_settings(cli: Cli, finished: Path) -> None:
    for extra in (["small.toml"], ["--epochs", 9], ["--seed", 3], ["--set", "fit.lr=1"], ["--id", "x"]):
        answer = cli("train", *extra, "--resume", finished)

        assert answer.code == 2
        assert "--resume takes a run as it is" in answer.err


def test_train_needs_a_recipe_or_a_run(cli: Cli) -> None:
    answer = cli("train")

    assert answer.code == 2
    assert "name a RECIPE" in answer.err


# Evaluating


def test_run_and_bundle_measure_the_same(cli: Cli, finished: Path, exported: Path, work: Path) -> None:
    of_run = cli("evaluate", finished, "--json")
    of_bundle = cli("evaluate", exported, "--json", "--data", "some-digits")

    first, second = json.loads(of_run.out), json.loads(of_bundle.out)
    assert first.keys() == second.keys() == Bundle.load(work / exported).manifest.metrics.keys()
    assert second == Bundle.load(work / exported).manifest.metrics
    assert (first["split"], first["images"], first["accuracy"]) == ("test", 30, second["accuracy"])
    for name in ("nll", "brier", "ece", "ece_equal_mass", "log_density"):
        assert first[name] == pytest.approx(second[name], abs=1e-3)
    assert first["occupancy"] == second["occupancy"]
    assert of_run.err == of_bundle.err == ""


def test_metrics_are_shown_as_a_table(cli: Cli, finished: Path) -> None:
    metrics = json.loads(cli("evaluate", finished, "--split", "train", "--json").out)

    answer = cli("evaluate", finished, "--split", "train")

    assert metrics["images"] == 72
    row = next(line for line in answer.out.splitlines() if "train" in line)
    assert row.split()[:3] == ["train", "72", f"{metrics['accuracy']:.2%}"]
    assert row.split()[3:5] == [f"{metrics['nll']:.4f}", f"{metrics['brier']:.4f}"]
    assert row.split()[5:7] == [f"{metrics['ece']:.2%}", f"{metrics['ece_equal_mass']:.2%}"]
    assert row.split()[7] == f"{metrics['aurc']:.4f}"
    for label, shares in zip("014", metrics["occupancy"], strict=True):
        assert [label, *(f"{share:.1%}" for share in shares)] in [line.split() for line in answer.out.splitlines()]


@pytest.fixture
def holding_out(finished: Path, work: Path) -> Path:
    """The same run as if its training images were held out, relative to `work`."""
    run = Path("runs/small/holding-out")
    if not (work / run).exists():
        shutil.copytree(work / finished, work / run)
        splits = {name: part.numpy() for name, part in Run.open(work / finished).splits().items()}
        np.savez(work / run / "splits.npz", **splits, held_out=splits["train"], calibration=splits["validation"])
    return run


def test_thresholds_are_printed_as_parameters_of_a_request(cli: Cli, holding_out: Path) -> None:
    shown = cli("thresholds", holding_out, "--error", "0.1")
    as_json = json.loads(cli("thresholds", holding_out, "--error", "0.1", "--json").out)

    assert shown.code == 0
    assert json.loads(shown.out.splitlines()[-1]) == as_json["parameters"]
    assert as_json["parameters"] == {"accept": {"probability": as_json["probability"]}}
    assert (as_json["images"], as_json["error"], as_json["confidence"]) == (72, 0.1, 0.95)
    assert as_json["error_bound"] <= 0.1
    words = " ".join(shown.out.split())
    assert f"accept answers with a probability of at least {as_json['probability']:g}: " in words
    assert f"{as_json['accepted'] / 72:.1%} of 72 held-out images, of which {as_json['wrong']} are wrong; " in words
    assert f"with 95% confidence at most {as_json['error_bound']:.2%} of the answers accepted are" in words


def test_thresholds_that_nothing_holds_are_refused(cli: Cli, holding_out: Path) -> None:
    answer = cli("thresholds", holding_out, "--error", "0.001")

    assert answer.code == 1
    assert answer.out == ""
    message = (
        r"error: error must be one that some answers hold with 95% confidence, got 0\.001: from probability [\d.]+ on"
    )
    assert re.match(message, answer.err)
    assert "(2,995 accepted without a wrong one are the fewest)" in answer.err


def test_thresholds_need_a_run_that_holds_images_out(cli: Cli, finished: Path, exported: Path) -> None:
    of_run, of_bundle = (cli("thresholds", target, "--error", "0.1") for target in (finished, exported))

    assert of_run.code == of_bundle.code == 1
    assert of_run.err.startswith("error: run must hold images out, got ")
    assert "train it anew from a recipe that does ([calibration] share)" in of_run.err
    assert of_bundle.err.startswith(f"error: run must be a folder runs/<recipe>/<id>, got the bundle {exported}")


def test_other_images_are_measured_with_a_warning(cli: Cli, exported: Path, tmp_path: Path) -> None:
    other = write_digit_folder(tmp_path / "other", per_class=20)

    answer = cli("evaluate", exported, "--data", other, "--json")

    assert answer.code == 0
    assert json.loads(answer.out)["images"] == 15
    assert answer.err == "these are not the images that the model was trained and measured on\n"


def test_images_of_other_classes_are_refused(cli: Cli, exported: Path, finished: Path, tmp_path: Path) -> None:
    other = write_digit_folder(tmp_path / "other", "123")

    for target in (exported, finished):
        assert_one_line(cli("evaluate", target, "--data", other), "classes must be the model's, 0, 1, 4, got 1, 2, 3")


# Exporting and samples


def test_export_of_a_bundle_makes_its_variants_anew(cli: Cli, exported: Path, work: Path, tmp_path: Path) -> None:
    folder = Path("store/renewed/1")
    shutil.copytree(work / exported, work / folder)
    before = Bundle.load(work / folder).manifest
    none = cli("export", folder, "--data", "some-digits")
    answer = cli("export", folder, "--float16", "--data", "some-digits")
    others = cli("export", folder, "--data", write_digit_folder(tmp_path / "digits", per_class=30))

    after = Bundle.load(work / folder).manifest
    assert answer.code == 0
    assert re.fullmatch(
        r"float16: accuracy [\d.]+% \(float32 [\d.]+%\), [\d.]+% of the assignments as in float32; "
        r"log-density [+-][\d.]+ nats in the median, [+-][\d.]+ to [+-][\d.]+; judged on 18 validation images\n",
        answer.out,
    )
    assert list(after.variants) == ["float16"]
    assert after.metrics == before.metrics
    assert after.sha256.items() > before.sha256.items()
    assert_one_line(none, f"variants of {folder} must be named, for it has none: --int8, --float16")
    assert_one_line(others, f"images must be those that {folder} was trained and measured on, got others")


def test_bundle_whose_splits_were_cut_otherwise_says_so(cli: Cli, exported: Path, work: Path) -> None:
    folder = Path("store/recut/1")
    shutil.copytree(work / exported, work / folder)
    manifest = json.loads((work / folder / "bundle.json").read_text())
    manifest["dataset"]["splits"] = {"train": 70, "validation": 20, "test": 30}
    (work / folder / "bundle.json").write_text(json.dumps(manifest))
    counts = r"\{'train': 70, 'validation': 20, 'test': 30\}, got \{'train': 72, 'validation': 18, 'test': 30\}"

    measured = cli("evaluate", folder, "--data", "some-digits", "--json")
    renewed = cli("export", folder, "--float16", "--data", "some-digits")

    assert measured.code == 0
    assert re.fullmatch(
        rf"splits must be those of the training, {counts}: the model may know the images\n", measured.err
    )
    assert_one_line(renewed, rf"splits of {folder} must be {counts}: train it anew")


def test_export_shows_the_metrics_and_the_next_command(cli: Cli, finished: Path, work: Path) -> None:
    answer = cli("export", finished, "--name", "digits", "--version", 4, "--model-store", "store")

    bundle = Bundle.load(work / "store/digits/4")
    assert answer.code == 0
    assert f"{bundle.manifest.metrics['accuracy']:.2%}" in answer.out
    assert answer.out.endswith("exported: store/digits/4; package it with  python -m serving package store/digits/4\n")
    assert_one_line(
        cli("export", finished, "--name", "digits", "--version", 4, "--model-store", "store"),
        "store/digits/4 must not exist yet, got a bundle that is there: choose another version or replace it",
    )


# Names of components


@pytest.fixture
def to_name(work: Path, exported: Path) -> Path:
    """A copy of the exported bundle, relative to `work`, whose components have no names."""
    folder = Path("store/to-name/1")
    shutil.rmtree(work / folder, ignore_errors=True)
    shutil.copytree(work / exported, work / folder)
    return folder


def test_components_are_shown_with_their_shares_and_where_to_see_them(cli: Cli, to_name: Path, work: Path) -> None:
    answer = cli("name", to_name)

    occupancy = Bundle.load(work / to_name).manifest.metrics["occupancy"]
    lines = answer.out.splitlines()
    assert answer.code == 0
    for label, shares in zip("014", occupancy, strict=True):
        assert [label, *(f"{share:.1%}" for share in shares)] in [line.split() for line in lines]
    assert f"see images of each component with  python -m training report RUN, of the run that {to_name} is of" in lines
    assert lines[-1].startswith(f"name one with  python -m training name {to_name} '0' 0 \"what they show\", all of")
    (work / to_name / "report").mkdir()
    for file in ("index.html", "components.png"):
        (work / to_name / "report" / file).touch()
    assert f"images of each component: {to_name}/report/index.html" in cli("name", to_name).out.splitlines()


def test_one_component_is_named_and_its_name_taken_away(cli: Cli, to_name: Path, work: Path) -> None:
    named = cli("name", to_name, "4", 1, "with a [b]bar[/b]")

    assert named.code == 0
    assert "with a [b]bar[/b]" in named.out
    assert named.out.endswith(f"named; servers get it with  python -m serving package {to_name}\n")
    assert Bundle.load(work / to_name).manifest.component_names == {"4": {1: "with a [b]bar[/b]"}}
    assert "with a [b]bar[/b]" in cli("evaluate", to_name, "--data", "some-digits").out
    assert cli("name", to_name, "4", 1, "").code == 0
    assert Bundle.load(work / to_name).manifest.component_names == {}


def test_file_that_was_written_is_filled_in_and_read(cli: Cli, to_name: Path, work: Path) -> None:
    written = cli("name", to_name, "--write", "names.toml")
    assert written.out == (
        f"written: names.toml; fill it in, then  python -m training name {to_name} --names names.toml\n"
    )
    text = (work / "names.toml").read_text().replace('# 1 = ""', '1 = "second"')
    (work / "names.toml").write_text(text)

    answer = cli("name", to_name, "--names", "names.toml")

    assert answer.code == 0
    assert Bundle.load(work / to_name).manifest.component_names == {label: {1: "second"} for label in "014"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["4"], r'one name must be given as LABEL COMPONENT NAME, such as 7 2 "crossed", got 4 alone'),
        (["4", "2", "x"], r"component_names must name components below 2, got 2 of 4"),
        (["5", "0", "x"], r"component_names must name classes of store/to-name/1, 0, 1, 4, got '5'"),
        (
            ["4", "0", "x", "--names", "n.toml"],
            r"--names must come without LABEL, COMPONENT and NAME, got both n.toml .*",
        ),
    ],
)
def test_wrong_names_are_refused(arguments: list[str], message: str, cli: Cli, to_name: Path) -> None:
    assert_one_line(cli("name", to_name, *arguments), message)


def test_export_takes_names_and_does_not_lose_them(cli: Cli, finished: Path, work: Path) -> None:
    (work / "few.toml").write_text('[4]\n0 = "open"\n')
    export = ["export", finished, "--name", "named", "--replace"]

    named = cli(*export, "--names", "few.toml")
    lost = cli(*export)
    kept = cli(*export, "--names", "model_store/named/1", "--examples", "means")

    manifest = Bundle.load(work / "model_store/named/1").manifest
    assert named.code == kept.code == 0
    assert re.search(r"^ *4 +[\d.]+% open", named.out, re.MULTILINE)
    assert_one_line(
        lost,
        r"--names must be given in the place of the 1 names of components that model_store/named/1 has, got none: "
        r"a TOML file, which may be empty, or model_store/named/1 itself if it is of the same run",
    )
    assert manifest.component_names == {"4": {0: "open"}}
    assert manifest.examples is not None
    assert manifest.examples.nearest == 0
    assert "thumbnails of each component: model_store/named/1/examples.zip" in cli("name", "model_store/named/1").out
    assert_one_line(
        cli("export", "model_store/named/1", "--names", "few.toml"),
        "--names and --examples must come with a run, got the bundle model_store/named/1: see training name",
    )


def test_samples_are_written_and_named(cli: Cli, tmp_path: Path) -> None:
    """The folder's path is longer than a terminal's line, and still each file has a line of its own."""
    folder = tmp_path / ("long" * 20)

    answer = cli("samples", "digits", "--out", folder, "--count", 3)

    files = [Path(line) for line in answer.out.splitlines()]
    assert answer.code == 0
    assert sorted(files) == sorted(folder.iterdir())
    assert all(re.fullmatch(r"\d{5}-\d\.png", file.name) for file in files)
    assert len(files) == 3


def test_samples_of_photos_show_what_they_are_named_after(cli: Cli, tmp_path: Path) -> None:
    answer = cli("samples", "photos", "--out", tmp_path / "photos", "--count", 2)

    assert answer.out.splitlines() == [f"{tmp_path}/photos/temple.jpg", f"{tmp_path}/photos/dahlia.jpg"]
    for file, shown in (("temple.jpg", "china.jpg"), ("dahlia.jpg", "flower.jpg")):
        with Image.open(tmp_path / "photos" / file) as photo:
            np.testing.assert_array_equal(np.asarray(photo), load_sample_image(shown))


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digits-xyz"], r"recipe must be a TOML file or one of .*, got 'digits-xyz'"),
        (["train", "digits-mda", "--set", "fit.lr=fast"], r"fit\.lr must be a valid number, got 'fast'"),
        (["train", "digits-mda", "--epochs", "0"], r"fit\.epochs must be greater than or equal to 1, got 0"),
        (["train", "digits-mda", "--device", "tpu"], r"device must be auto, cpu or cuda, got 'tpu'"),
        (["train", "small.toml", "--id", "no-data"], r"a folder of class folders must be named with --data .*"),
        (["train", "small.toml", "--id", "lost", "--data", "lost"], r"--data must be a folder .*, got lost, which .*"),
        (["train", "--resume", "runs/small/none"], r"run must be a folder runs/.*, got runs/small/none"),
        (["evaluate", "runs/small/none"], r"run must be a folder runs/.*, got runs/small/none"),
        (["export", "runs/small/none"], r"run must be a folder runs/.*, got runs/small/none"),
        (["samples", "imagenet", "--out", "x"], r"dataset must be one of digits, mnist, .*, got 'imagenet'"),
        (["samples", "folder", "--out", "x"], r"dataset must be one of digits, mnist, .*, got 'folder'"),
        (["samples", "digits", "--out", "small.toml"], r".*File exists: 'small\.toml'"),
    ],
)  # fmt: skip
def test_mistake_is_answered_in_one_line(arguments: list[str], message: str, cli: Cli) -> None:
    assert_one_line(cli(*arguments), message)


def test_error_keeps_its_square_brackets(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text(dump_recipe(small_recipe()))

    assert_one_line(
        cli("train", tmp_path / "bare.toml", "--set", "loss.kind=fisher"),
        r"loss\.kind fisher must go with a \[refit\], which fits the head, got none",
    )


def test_unknown_and_empty_splits_are_refused(cli: Cli, finished: Path) -> None:
    assert_one_line(
        cli("evaluate", finished, "--split", "dev"), "split must be one of train, validation, test, got 'dev'"
    )
    cli("train", "small.toml", "--data", "some-digits", "--id", "empty", "--epochs", 1, "--set", "data.validation=0")
    assert_one_line(
        cli("evaluate", "runs/small/empty", "--split", "validation"),
        "split must have images, got validation, which is empty in this recipe",
    )


def test_cuda_on_a_machine_without_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert_one_line(cli("train", "digits-mda", "--device", "cuda"), r"device must be there, got cuda on a machine .*")


def test_run_of_the_same_name_is_refused(cli: Cli, finished: Path) -> None:
    assert_one_line(
        cli("train", "small.toml", "--data", "some-digits", "--id", "finished"),
        rf"run must be new, got {finished}, which is there: go on with --resume {finished} or name another",
    )


def test_unfinished_run_is_neither_measured_nor_exported(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise ValueError("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_classifier", dies)
        cli("train", "small.toml", "--data", "some-digits", "--id", "unfinished")
    message = rf"run must be finished, got {work}/runs/small/unfinished without classifier\.pt: go on with --resume .*"

    assert_one_line(cli("evaluate", "runs/small/unfinished"), message)
    assert_one_line(cli("export", "runs/small/unfinished"), message)


def test_name_that_is_no_model_name_is_refused(cli: Cli, finished: Path) -> None:
    assert_one_line(
        cli("export", finished, "--name", "My Model"),
        "name must be lower-case letters, digits, dots, dashes and underscores, got 'My Model': --name",
    )


def test_real_process_ends_with_code_one_and_one_line(work: Path) -> None:
    command = [sys.executable, "-m", "training", "evaluate", "x" * 100]

    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL
    )

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"error: run must be a folder runs/<recipe>/<id> with a recipe.toml and a run.json, got {'x' * 100}\n"
    )
