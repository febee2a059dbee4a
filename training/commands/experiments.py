"""The commands that compare many trainings: sweep, study, benchmark."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from training.benchmark import SMALL, recipe_timed, run_benchmark, table_of_speeds
from training.commands.options import DataRootOption, DeviceOption, FolderOption, RecordOption
from training.data import Sources
from training.devices import choose_device, choose_precision
from training.digests import speed_digest
from training.files import replace_text
from training.progress import console, say, steps, warn
from training.recipe import Recipe, load_recipe
from training.results import record as record_figures
from training.results import stamp
from training.run import RUNS
from training.studies import STUDIES
from training.studies.study import Setting
from training.sweeps.prepared import Images
from training.sweeps.report import figures_of, in_words, table_of_trials, write_sweep_report
from training.sweeps.space import parse_space
from training.sweeps.sweep import PRESETS, Sweep, Trial, carry_out

OverridesOption = Annotated[
    list[str] | None, typer.Option("--set", help="key=value for every trial, such as fit.epochs=5; repeatable.")
]
PhotosOption = Annotated[
    Path | None, typer.Option("--data", help="Photos for photographs: a folder with train/<class>/ and test/<class>/.")
]


def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a TOML file.")],
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="key=1e-3,1e-2 (a list), key=1e-5:1e-1:log (a range) or key=1e-5:1e-1:log:9 (9 values); repeatable."
        ),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Try every combination, instead of what TPE proposes.")] = False,
    trials: Annotated[int, typer.Option(min=1, help="How many trials TPE makes in all.")] = 30,
    preset: Annotated[
        str | None, typer.Option(help="notebook: 24 learning rates x 15 weight decays for linear models.")
    ] = None,
    overrides: OverridesOption = None,
    sweep_id: Annotated[
        str | None, typer.Option("--id", help="Name of the sweep; of its settings if left out.")
    ] = None,
    data_root: DataRootOption = Path("data"),
    data: FolderOption = None,
    device: DeviceOption = "auto",
    record: RecordOption = False,
) -> None:
    """Train a recipe at many points of a search space and keep the best by validation accuracy.

    Any key of the recipe can be swept. The same command goes on where it stopped; what Ctrl-C interrupts is trained
    again. Leaves a picture, sweep.json and best.toml, a recipe to train.

    Example: python -m training sweep digits-mda --over fit.lr=1e-3,3e-3,1e-2 --over loss.weight=0.01:1:log:5 --grid
    """
    settings = [*(overrides or []), *(["data.name=folder"] if data is not None else [])]
    wanted = _sweep_of(recipe, settings, over or [], None if grid else trials, preset)
    folder = wanted.folder(sweep_id)
    images = Images(Sources(data_root, data), choose_device(device))
    _warn_of_emulation(wanted.base(), images.device)
    say(f"sweeping {wanted.name} over {', '.join(p.key for p in wanted.space)}: {wanted.total} trials in {folder}")
    done = _with_bar(wanted, images, folder)
    console.print(table_of_trials(wanted, done))
    for file in write_sweep_report(wanted, done, folder):
        say(str(file))
    if record:
        record_figures("sweeps", wanted.name, figures_of(wanted, done))
    say(f"train the best one with  python -m training train {folder / 'best.toml'}")


def study(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(STUDIES)}.")],
    runs: Annotated[
        list[Path] | None,
        typer.Option("--run", help="A finished run, instead of the newest; shift-invariance takes two."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; runs/studies/NAME if left out.")] = None,
    data_root: DataRootOption = Path("data"),
    data: PhotosOption = None,
    device: DeviceOption = "auto",
    record: RecordOption = False,
) -> None:
    """Answer one question with figures, a picture and a JSON file.

    box-regression: does a predicted box follow its square, MLP against CNN (trains both, minutes). class-means: which
    classes lie close together, from a run of cifar100-lda. parameter-growth: how parameters grow with the image.
    photographs: how right a head is that has seen few photos of a class (--data, and CIFAR-10 scaled up; an hour).
    shift-invariance: accuracy of shifted images, from a run of cifar10-mlp and one of cifar10-cnn.

    Example: python -m training study parameter-growth
    """
    if name not in STUDIES:
        raise ValueError(f"study must be one of {', '.join(STUDIES)}, got {name!r}")
    folder = out or RUNS / "studies" / name
    outcome = STUDIES[name](Setting(folder, choose_device(device), tuple(runs or ()), data_root, data=data))
    console.print(outcome.table)
    if outcome.note:
        say(f"\n{outcome.note}")
    for file in (outcome.write(folder, name), *outcome.files):
        say(str(file))
    if record:
        record_figures("studies", name, {**outcome.figures, "digest": outcome.made_from})


def benchmark(
    recipes: Annotated[list[str] | None, typer.Argument(help="Recipes; the small models if left out.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many a round trains on.")] = 10_000,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of measurements; the ratio is their median.")] = 5,
    real: Annotated[bool, typer.Option("--real", help="Real images from --data-root instead of noise.")] = False,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = RUNS / "training-speed.json",
    data_root: DataRootOption = Path("data"),
    device: DeviceOption = "auto",
    record: RecordOption = False,
) -> None:
    """Measure how fast training is, in images per second, against the usual loop of notebooks on the same model.

    The usual loop: torchvision transforms on one PIL image at a time, a DataLoader with two workers, loss.item() at
    every step. The two loops take turns. Leave the machine alone meanwhile.

    Example: python -m training benchmark cifar10-mlp cifar10-cnn --rounds 7
    """
    sources, chosen, names = Sources(data_root) if real else None, choose_device(device), recipes or SMALL
    for name in names:
        _warn_of_emulation(load_recipe(name)[1], chosen)
    speeds = run_benchmark(names, sources, images=images, rounds=rounds, device=chosen)
    console.print(table_of_speeds(speeds))
    made_from = {Path(name).stem: speed_digest(recipe_timed(name)) for name in names}
    figures = {
        speed.recipe: {**speed.figures(), "real_images": real, "digest": made_from[speed.recipe]} for speed in speeds
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, json.dumps({**figures, "measured": stamp()}, indent=2) + "\n")
    say(str(out))
    if record:
        for name, values in figures.items():
            record_figures("training_speed", name, values)


def _sweep_of(recipe: str, settings: list[str], over: list[str], trials: int | None, preset: str | None) -> Sweep:
    if preset is None:
        return Sweep(recipe, tuple(settings), parse_space(over), trials)
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if over:
        raise ValueError(f"--preset must come without --over, got both {preset} and {over[0]}")
    chosen = PRESETS[preset]
    return Sweep(recipe, (*chosen.settings, *settings), parse_space(chosen.over))


def _warn_of_emulation(recipe: Recipe, device: torch.device) -> None:
    if warning := choose_precision(recipe.fit.precision, device).warning:
        warn(warning)


def _with_bar(wanted: Sweep, images: Images, folder: Path) -> list[Trial]:
    """Carry out a sweep under a bar with the best so far; a line stays for every new best."""
    done, best = [], -1.0
    with steps("sweep", wanted.total) as bar:
        for trial in carry_out(wanted, images, folder):
            done.append(trial)
            if trial.end == "finished" and trial.accuracy > best:
                best = trial.accuracy
                at = ", ".join(f"{key}={in_words(value)}" for key, value in trial.point.items())
                say(f"{best:7.2%}  {at}")
                bar.describe(f"best {best:.2%}")
            bar.advance()
    return done
