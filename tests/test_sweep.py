"""Sweeps: the space, the schema before anything runs, the best point, going on after an interruption, the report."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_samples import project_in, small_recipe
from typer.testing import CliRunner

from training.__main__ import app
from training.data import Sources
from training.devices import choose_device, choose_precision
from training.fit import Epoch, fit
from training.recipe import RecipeError, dump_recipe, load_recipe
from training.run import Run, RunError
from training.sweeps import sweep as sweep_module
from training.sweeps.prepared import Images
from training.sweeps.report import Scale, figures_of, sweep_figure, table_of_trials, write_sweep_report
from training.sweeps.space import Parameter, check, grid, parse_over, parse_space, recipe_at
from training.sweeps.sweep import PRESETS, Sweep, Trial, best_of, carry_out
from training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = choose_device("cpu")
MLP = {"kind": "linear", "dim": 9}


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    """A linear model of the digits that is trained in a blink."""
    recipe = small_recipe(encoder=MLP, head={"kind": "softmax"}, fit={"epochs": 1, "batch_size": 256})
    (tmp_path / "tiny.toml").write_text(dump_recipe(recipe))
    return str(tmp_path / "tiny.toml")


@pytest.fixture(scope="module")
def images() -> Images:
    return Images(Sources(), CPU)


def ends(trials: list[Trial]) -> list[tuple]:
    """What of trials does not depend on the clock."""
    return [(trial.point, trial.accuracy, trial.end) for trial in trials]


def carried_out(sweep: Sweep, images: Images, folder: Path, stop_after: int | None = None) -> list[Trial]:
    """Carry out a sweep; as Ctrl-C does it, stop in the middle of the trial after `stop_after` new ones."""
    begun = []

    def interrupted(*arguments: object) -> Iterator[Epoch]:
        begun.append(1)
        for epoch in fit(*arguments):  # type: ignore[arg-type]
            if stop_after is not None and len(begun) > stop_after:
                raise KeyboardInterrupt
            yield epoch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module, "fit", interrupted)
        return list(carry_out(sweep, images, folder))


# The space


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("fit.lr=1e-3,1e-2", (1e-3, 1e-2)),
        ("fit.lr = 0.1", (0.1,)),
        ("fit.optimizer=sgd,adam", ("sgd", "adam")),
        ("fit.flip=true,false", (True, False)),
        ("encoder.hidden=[16],[32, 16]", ("[16]", "[32, 16]")),
        ("fit.lr=1:3:3", (1, 2, 3)),
        ("fit.lr=0.0:1.0:5", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("fit.lr=1e-3:1e1:log:5", (1e-3, 1e-2, 1e-1, 1.0, 10.0)),
        ("encoder.width=4:64:log:5", (4, 8, 16, 32, 64)),
    ],
)
def test_lists_and_counted_ranges_are_values(text: str, values: tuple) -> None:
    parameter = parse_over(text)

    assert parameter.key == text.partition("=")[0].strip()
    assert parameter.values == (pytest.approx(values) if isinstance(values[0], float) else values)


def test_range_without_a_count_stays_a_range() -> None:
    assert parse_over("fit.lr=1e-5:1e-1:log") == Parameter("fit.lr", (), 1e-5, 1e-1, True)
    assert parse_over("encoder.width=4:64") == Parameter("encoder.width", (), 4, 64, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fit.lr", r"--over must look like fit\.lr=1e-4,1e-3 or .*, got 'fit\.lr'"),
        ("=1", r"--over must look like .*, got '=1'"),
        ("fit.lr=0:1:log", r"fit\.lr must be above 0 for a range in the logarithm, got 'fit\.lr=0:1:log'"),
        ("fit.lr=2:1", r"the ends of fit\.lr must be finite and rise, got 'fit\.lr=2:1'"),
        ("fit.lr=1:inf", r"the ends of fit\.lr must be finite and rise, got 'fit\.lr=1:inf'"),
        ("fit.lr=1:2:log:1", r"a range must be low:high, .*, got 'fit\.lr=1:2:log:1'"),
        ("fit.lr=1:2:3:4", r"a range must be low:high, .*, got 'fit\.lr=1:2:3:4'"),
    ],
)
def test_text_that_is_no_space_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_over(text)


def test_space_names_each_key_once() -> None:
    with pytest.raises(ValueError, match=r"^--over must name at least one key of the recipe, .*, got none$"):
        parse_space([])
    with pytest.raises(ValueError, match=r"^every key must be given once with --over, got fit\.lr 2 times$"):
        parse_space(["fit.lr=1,2", "fit.lr=3"])


def test_grid_is_every_combination() -> None:
    points = grid(parse_space(["fit.lr=1,2", "loss.weight=3,4,5"]))

    assert [tuple(point.values()) for point in points] == [(1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5)]
    with pytest.raises(ValueError, match=r"^fit\.lr must be a list or a range with a count for --grid \(1:2:log:9\)"):
        grid(parse_space(["fit.lr=1:2:log"]))


def test_notebooks_grid_is_that_of_the_notebook() -> None:
    rates, decays = (parameter.values for parameter in parse_space(PRESETS["notebook"].over))

    assert rates == pytest.approx([1e-8 * 2.0**i for i in range(1, 25)])
    assert decays == pytest.approx([1e-7 * 6.0**i for i in range(15)])


def test_point_is_written_into_the_recipe(recipe_file: str) -> None:
    point = {"fit.lr": 2e-8, "fit.optimizer": "sgd", "encoder.hidden": "[16, 8]", "fit.flip": True, "fit.epochs": 3}

    recipe = recipe_at(recipe_file, ["encoder.kind=mlp", "fit.epochs=2"], point)

    assert (recipe.fit.lr, recipe.fit.optimizer, recipe.fit.flip, recipe.fit.epochs) == (2e-8, "sgd", True, 3)
    assert recipe.encoder.hidden == (16, 8)


@pytest.mark.parametrize(
    ("settings", "over", "message"),
    [
        ([], ["fit.lr=1e-3,fast"], r"fit\.lr must be a valid number, got 'fast' \(at fit\.lr=fast\)"),
        ([], ["fit.lr=1e-3,-1.0"], r"fit\.lr must be greater than 0, got -1\.0 \(at fit\.lr=-1\.0\)"),
        ([], ["fit.rate=1,2"], r"fit\.rate must be one of the keys .*, got an unknown key.*"),
        ([], ["encoder.kind=linear,mlp"], r"encoder\.hidden must name at least one layer .*at encoder\.kind=mlp\)"),
        (
            ["encoder.kind=resnet18"],
            ["fit.lr=1,2"],
            r"encoder\.kind must be one that learns from pixels .*, got resnet18",
        ),
        (["data.validation=0.0"], ["fit.lr=1,2"], r"data\.validation must be above 0 for a sweep, .*, got 0"),
    ],
)
def test_schema_is_asked_before_anything_runs(
    settings: list[str], over: list[str], message: str, recipe_file: str, images: Images, tmp_path: Path
) -> None:
    for trials in (None, 5):
        sweep = Sweep(recipe_file, tuple(settings), parse_space(over), trials)

        with pytest.raises(RecipeError, match=f"^{message}$"):
            next(carry_out(sweep, images, tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()


def test_ranges_are_checked_at_their_ends(recipe_file: str) -> None:
    with pytest.raises(RecipeError, match=r"^encoder\.dropout must be less than 1, got 1\.5 \(at .*"):
        check(recipe_file, [], parse_space(["encoder.dropout=0.0:1.5", "fit.lr=1e-3:1e-1:log"]), every=False)


# Trials


def test_grid_finds_the_learning_rate_that_learns(recipe_file: str, images: Images, tmp_path: Path) -> None:
    sweep = Sweep(recipe_file, ("fit.epochs=2",), parse_space(["fit.lr=1e-8,1e-2", "fit.weight_decay=0.0,1e-3"]))

    trials = carried_out(sweep, images, tmp_path)

    best = best_of(trials)
    assert [trial.point for trial in trials] == grid(sweep.space)
    assert best.point["fit.lr"] == 1e-2
    assert best.accuracy > 0.8 > 0.3 > trials[0].accuracy


def test_trial_is_what_training_the_recipe_gives(recipe_file: str, images: Images, tmp_path: Path) -> None:
    sweep = Sweep(recipe_file, ("fit.epochs=2",), parse_space(["fit.lr=1e-2"]))

    (trial,) = carried_out(sweep, images, tmp_path)

    run = Run.create("tiny", recipe_at(recipe_file, sweep.settings, trial.point), None, tmp_path / "runs")
    train(run, Sources(), CPU)
    assert trial.accuracy == pytest.approx(run.epochs()[-1]["validation_accuracy"], abs=1e-6)


def test_refitted_head_is_what_counts(recipe_file: str, images: Images, tmp_path: Path) -> None:
    """One component a class and five are told apart only by the head that the refit makes."""
    settings = ("refit.dim=16", "refit.components=1", "head.kind=lda", "refit.restarts=1")
    sweep = Sweep(recipe_file, settings, parse_space(["refit.ridge=1e-3,1e3"]))

    fine, flattened = carried_out(sweep, images, tmp_path)

    assert fine.accuracy > flattened.accuracy + 0.005


@pytest.mark.parametrize("trials", [None, 7])
def test_interrupted_sweep_ends_as_an_uninterrupted_one(
    trials: int | None, recipe_file: str, images: Images, tmp_path: Path
) -> None:
    over = ["fit.lr=1e-4,1e-3,1e-2", "fit.optimizer=sgd,adam"] if trials is None else ["fit.lr=1e-5:1e-1:log"]
    sweep = Sweep(recipe_file, ("fit.epochs=2",), parse_space(over), trials)

    straight = carried_out(sweep, images, tmp_path / "straight")
    for stop_after in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            carried_out(sweep, images, tmp_path / "stopped", stop_after)
    resumed = carried_out(sweep, images, tmp_path / "stopped")

    assert len(straight) == sweep.total
    assert ends(resumed) == ends(straight)


def test_finished_sweep_trains_nothing_again(recipe_file: str, images: Images, tmp_path: Path) -> None:
    sweep = Sweep(recipe_file, (), parse_space(["fit.lr=1e-3,1e-2"]))

    first = carried_out(sweep, images, tmp_path)
    again = carried_out(sweep, images, tmp_path, stop_after=0)

    assert again == first


def test_tpe_goes_on_with_more_trials(recipe_file: str, images: Images, tmp_path: Path) -> None:
    space = parse_space(["fit.lr=1e-4:1e-1:log"])
    folder = Sweep(recipe_file, (), space, 2).folder(None, tmp_path)

    two = carried_out(Sweep(recipe_file, (), space, 2), images, folder)
    three = carried_out(Sweep(recipe_file, (), space, 3), images, folder)

    assert folder == Sweep(recipe_file, (), space, 3).folder(None, tmp_path)
    assert three[:2] == two
    assert len(three) == 3
    assert all(1e-4 <= float(trial.point["fit.lr"]) <= 1e-1 for trial in three)


def test_divergence_is_a_trial_of_no_accuracy(
    recipe_file: str, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("fit.optimizer=sgd", "fit.epochs=3", "head.kind=svm", "loss.kind=hinge")
    sweep = Sweep(recipe_file, settings, parse_space(["fit.lr=1e-2,1e30"]))

    kept, diverged = carried_out(sweep, images, tmp_path)

    assert (kept.end, diverged.end, diverged.accuracy) == ("finished", "diverged", 0.0)
    assert "must be finite" in diverged.why
    assert figures_of(sweep, [kept, diverged])["diverged"] == 1
    assert best_of([kept, diverged]) == kept
    with pytest.raises(RunError, match=r"^a sweep must have a trial that came to its end, got 1 that did not$"):
        best_of([diverged])


def test_poor_trials_are_pruned_and_never_the_best(
    recipe_file: str, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five trials that learn, then one that does not: the median of the five ends it after its second epoch."""
    seen: list[int] = []

    def scripted(*_: object) -> Iterator[Epoch]:
        poor = len(seen) >= 5
        seen.append(0)
        for epoch in range(1, 5):
            seen[-1] = epoch
            yield Epoch({"epoch": epoch, "validation_accuracy": 0.1 if poor else 0.5 + 0.1 * epoch}, {})

    monkeypatch.setattr(sweep_module, "fit", scripted)
    trials = list(carry_out(Sweep(recipe_file, (), parse_space(["fit.lr=1e-4:1e-1:log"]), 6), images, tmp_path))

    assert seen == [4, 4, 4, 4, 4, 2]
    assert [trial.end for trial in trials] == ["finished"] * 5 + ["pruned"]
    assert [trial.accuracy for trial in trials] == [0.9] * 5 + [0.1]


def test_other_sweep_is_refused_in_the_same_folder(recipe_file: str, images: Images, tmp_path: Path) -> None:
    first = Sweep(recipe_file, (), parse_space(["fit.lr=1e-3"]))
    carried_out(first, images, tmp_path)

    for other, what in (
        (Sweep(recipe_file, (), parse_space(["fit.lr=1e-2"])), "recipe and space"),
        (Sweep(recipe_file, (), parse_space(["fit.lr=1e-3"]), 2), "grid"),
    ):
        with pytest.raises(RunError, match=rf"^sweep must be the one that .* was begun with, got another {what}: .*"):
            carried_out(other, images, tmp_path)
    assert first.folder(None) != Sweep(recipe_file, (), parse_space(["fit.lr=1e-2"])).folder(None)
    assert first.folder("mine") == Path("runs/tiny/sweep-mine")


def test_one_process_works_on_a_sweep(recipe_file: str, images: Images, tmp_path: Path) -> None:
    sweep = Sweep(recipe_file, (), parse_space(["fit.lr=1e-3,1e-2"]))
    first = carry_out(sweep, images, tmp_path)
    next(first)

    with pytest.raises(RunError, match=r"^sweep must be worked on by one process at a time, got .*, which is in use$"):
        next(carry_out(sweep, images, tmp_path))
    assert len(list(first)) == 1


def test_images_are_prepared_once(recipe_file: str) -> None:
    images = Images(Sources(), CPU)
    recipe = load_recipe(recipe_file)[1]

    first = images.of(recipe)

    assert images.of(recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"lr": 0.5})})) is first
    assert images.of(recipe.model_copy(update={"seed": 3})) is not first


def test_trials_leave_nothing_but_the_study(
    recipe_file: str,
    images: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    carried_out(Sweep(recipe_file, (), parse_space(["fit.lr=1e-3"])), images, tmp_path / "sweep")

    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert sorted(file.name for file in (tmp_path / "sweep").iterdir()) == ["lock", "study.db"]
    assert capsys.readouterr().out == ""


# The report


def trial(accuracy: float, end: str = "finished", **point: object) -> Trial:
    return Trial({key.replace("_", ".", 1): value for key, value in point.items()}, accuracy, 1.0, end)  # type: ignore[misc]


def test_report_names_the_best_and_its_recipe_trains(recipe_file: str, tmp_path: Path) -> None:
    sweep = Sweep(recipe_file, ("fit.epochs=1",), parse_space(["fit.lr=1e-3,1e-2", "loss.weight=1.0,2.0"]))
    trials = [
        trial(0.5 + 0.1 * i, fit_lr=p["fit.lr"], loss_weight=p["loss.weight"]) for i, p in enumerate(grid(sweep.space))
    ]
    trials[3] = trial(0.0, "diverged", fit_lr=1e-2, loss_weight=2.0)

    files = write_sweep_report(sweep, trials, tmp_path)

    report = json.loads((tmp_path / "sweep.json").read_text())
    assert [file.name for file in files] == ["sweep.json", "best.toml", "sweep.png"]
    assert report["best"] == {"validation_accuracy": 0.7, "fit.lr": 1e-2, "loss.weight": 1.0}
    assert (report["trials"], report["diverged"], report["search"], len(report["all"])) == (4, 1, "grid", 4)
    assert tomllib.loads((tmp_path / "best.toml").read_text())["fit"]["lr"] == 1e-2
    name, best = load_recipe(str(tmp_path / "best.toml"))
    assert (name, best) == ("best", recipe_at(recipe_file, sweep.settings, trials[2].point))
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_table_holds_the_best_five() -> None:
    sweep = Sweep("digits-mda", (), parse_space(["fit.lr=1e-6,1e-5,1e-4,1e-3,1e-2,1e-1"]))
    trials = [trial(0.1 * i, fit_lr=point["fit.lr"]) for i, point in enumerate(grid(sweep.space))]

    table = table_of_trials(sweep, trials)

    assert list(table.columns[1].cells) == ["50.00%", "40.00%", "30.00%", "20.00%", "10.00%"]
    assert list(table.columns[2].cells) == ["0.1", "0.01", "0.001", "0.0001", "1e-05"]


def test_heat_map_puts_each_trial_into_its_cell() -> None:
    sweep = Sweep("digits-mda", (), parse_space(["fit.lr=1e-3,1e-1,1e-2", "fit.weight_decay=0.0,1e-3,1e-1"]))
    trials = [
        trial(i / 10, fit_lr=p["fit.lr"], fit_weight_decay=p["fit.weight_decay"])
        for i, p in enumerate(grid(sweep.space))
    ]

    axes = sweep_figure(sweep, trials).axes[0]

    # Rows are weight decays (0 has no logarithm, so side by side), columns learning rates in rising order.
    assert axes.collections[0].get_array().data.tolist() == [[0.0, 0.6, 0.3], [0.1, 0.7, 0.4], [0.2, 0.8, 0.5]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "0.001", "0.1"]
    assert re.match(r"digits-mda: 9 trials\nbest 80.00% at lr 0.01, weight_decay 0.1", axes.get_title())


@pytest.mark.parametrize(
    ("over", "trials", "panels"),
    [(["fit.lr=1e-3,1e-1"], None, 1), (["fit.lr=1:2", "loss.weight=1:3", "fit.momentum=0:1"], 3, 3)],
)
def test_other_numbers_of_parameters_are_drawn_side_by_side(over: list[str], trials: int | None, panels: int) -> None:
    sweep = Sweep("digits-mda", (), parse_space(over), trials)
    point = {parameter.key: parameter.samples()[0] for parameter in sweep.space}

    assert len(sweep_figure(sweep, [Trial(point, 0.5, 1.0)]).axes) == panels


def test_cells_border_in_the_middle() -> None:
    assert Scale(parse_over("fit.lr=1e-3,1e-1,10.0")).edges() == pytest.approx([1e-4, 1e-2, 1.0, 100.0])
    assert Scale(parse_over("fit.lr=1.0,2.0,4.0")).edges() == pytest.approx([0.5, 1.5, 3.0, 5.0])
    assert Scale(parse_over("fit.optimizer=sgd,adam")).edges() == [-0.5, 0.5, 1.5]


# The command


def test_command_sweeps_goes_on_and_writes_a_recipe_that_trains(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["sweep", recipe_file, "--over", "fit.lr=1e-6,1e-2", "--grid", "--id", "a", "--device", "cpu"]

    first, again = (invoke(*command) for _ in range(2))

    folder = Path("runs/tiny/sweep-a")
    assert first == again
    assert f"sweeping tiny over fit.lr: 2 trials in {folder}\n" in first
    assert f"train the best one with  python -m training train {folder}/best.toml\n" in first
    assert sorted(file.name for file in folder.iterdir()) == [
        "best.toml", "lock", "study.db", "sweep.json", "sweep.png"
    ]  # fmt: skip
    best = json.loads((folder / "sweep.json").read_text())["best"]
    invoke("train", folder / "best.toml", "--id", "b", "--device", "cpu")
    assert best["fit.lr"] == 0.01
    last = Run.open(Path("runs/best/b")).epochs()[-1]
    assert last["validation_accuracy"] == pytest.approx(best["validation_accuracy"], abs=1e-6)


def test_command_records_its_figures(recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project_in(tmp_path)

    invoke("sweep", recipe_file, "--over", "fit.lr=1e-3:1e-2:log", "--trials", 1, "--device", "cpu", "--record")

    recorded = json.loads(Path("docs/results.json").read_text())["sweeps"]["tiny"]
    assert (recorded["search"], recorded["trials"]) == ("tpe", 1)
    assert recorded["over"] == {"fit.lr": {"low": 0.001, "high": 0.01, "log": True}}


@pytest.mark.isa
def test_command_warns_once_of_a_precision_that_is_emulated(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--over", "fit.lr=1e-3,1e-2", "--grid", "--set", "fit.precision=bfloat16", "--device", "cpu"]

    shown = invoke("sweep", recipe_file, *settings)

    warning = choose_precision("bfloat16", CPU).warning
    assert [line for line in shown.splitlines() if "slow" in line] == ([warning] if warning else [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"--over must name at least one key of the recipe, .*, got none"),
        (["--preset", "book"], r"--preset must be one of notebook, got 'book'"),
        (["--preset", "notebook", "--over", "fit.lr=1"], r"--preset must come without --over, got both notebook .*"),
    ],
)
def test_command_refuses_in_one_line(arguments: list[str], message: str, recipe_file: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        invoke("sweep", recipe_file, *arguments)


def invoke(*arguments: object) -> str:
    """What a command prints; what it raises is let through."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output
