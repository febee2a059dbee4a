"""A sweep: one recipe trained at many points of a search space, judged by the validation split, never the test split.

    python -m training sweep digits-mda --over fit.lr=1e-3:1e-1:log --trials 20
    python -m training sweep cifar10-svm --preset notebook

Everything lies in `runs/<recipe>/sweep-<id>/`: study.db (Optuna, SQLite), sweep.json, sweep.png, best.toml. A trial
that is interrupted leaves nothing, so the same command goes on where it stopped and ends as if it had never been
stopped. The points of a grid are added to the study as they are measured: Optuna's own GridSampler counts an
interrupted trial as done. TPE is seeded anew for every trial, from the recipe's seed and the number of trials before.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from training.fit import DivergedError, fit, validation_metrics
from training.recipe import Recipe, dump_recipe
from training.run import RUNS, RunError
from training.sweeps.prepared import Images, Prepared, fresh_classifier
from training.sweeps.space import Parameter, Point, check, grid, recipe_at
from training.train import refitted


@dataclass(frozen=True)
class Preset:
    """A sweep that has a name."""

    over: tuple[str, ...]
    settings: tuple[str, ...]


PRESETS = {
    # Learning rates 1e-8 * 2^i and L2 strengths 1e-7 * 6^i; 8 epochs of 200 batches are 1,600 steps, the notebook has
    # 1,500. fit.weight_decay is lambda in lambda/2 |w|^2, as SGD's weight decay is; the bias is decayed too.
    "notebook": Preset(
        ("fit.lr=2e-8:0.16777216:log:24", "fit.weight_decay=1e-7:7836.416409599999:log:15"),
        (
            "data.validation=0.2", "fit.epochs=8", "fit.batch_size=200", "fit.optimizer=sgd", "fit.momentum=0.0",
            "fit.schedule=constant", "fit.crop_padding=0", "fit.flip=false",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """What is swept: a recipe with settings, over a space, every point of it or `trials` of TPE."""

    recipe: str
    settings: tuple[str, ...]
    space: tuple[Parameter, ...]
    trials: int | None = None

    @property
    def is_grid(self) -> bool:
        """Whether every point of the space is tried."""
        return self.trials is None

    @property
    def total(self) -> int:
        """The number of trials."""
        return len(grid(self.space)) if self.trials is None else self.trials

    @property
    def name(self) -> str:
        """The recipe's name."""
        return Path(self.recipe).stem

    def base(self) -> Recipe:
        """The recipe at the first value of every key."""
        return recipe_at(self.recipe, self.settings, {p.key: p.samples()[0] for p in self.space})

    def identity(self) -> dict[str, Any]:
        """What two sweeps must share for one to go on with the other's trials."""
        space = [[p.key, list(p.values), p.low, p.high, p.log] for p in self.space]
        return {"recipe": dump_recipe(self.base()), "space": space, "grid": self.is_grid}

    def folder(self, sweep_id: str | None, runs: Path = RUNS) -> Path:
        """runs/<recipe>/sweep-<id>; without an id one that the same sweep always gets."""
        digest = hashlib.sha256(json.dumps(self.identity()).encode()).hexdigest()[:8]
        return runs / self.name / f"sweep-{sweep_id or digest}"


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Attributes:
        point: the values.
        accuracy: on the validation split after the last epoch, and after the refit if there is one; 0 if diverged.
        seconds: of the training.
        end: finished, pruned or diverged.
        why: the message of a divergence.
    """

    point: Point
    accuracy: float
    seconds: float
    end: str = "finished"
    why: str = ""


def carry_out(sweep: Sweep, images: Images, folder: Path) -> Iterator[Trial]:
    """Train every point that is not yet in the folder's study; all trials, those that the study holds already first.

    Args:
        sweep: what to do.
        images: where from.
        folder: of study.db.

    Raises:
        RecipeError: if the schema refuses a point, before anything runs.
        RunError: if the study is of another sweep or of other images, or another process works on it.
    """
    check(sweep.recipe, sweep.settings, sweep.space, every=sweep.is_grid)
    identity = {**sweep.identity(), "images": images.of(sweep.base()).dataset.fingerprint()}
    with _study(folder, identity) as study:
        yield from _trials(study)
        yield from _rest_of_grid(study, sweep, images) if sweep.is_grid else _more_of_tpe(study, sweep, images)


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest accuracy; the earliest of equals.

    Raises:
        RunError: if none came to its end.
    """
    finished = [trial for trial in trials if trial.end == "finished"]
    if not finished:
        raise RunError(f"a sweep must have a trial that came to its end, got {len(trials)} that did not")
    return max(finished, key=lambda trial: trial.accuracy)


def _measured(sweep: Sweep, images: Images, point: Point, is_poor: Callable[[int, float], bool]) -> Trial:
    """Train at a point, until it `is_poor` by an epoch and its accuracy; a divergence has an accuracy of 0."""
    recipe = recipe_at(sweep.recipe, sweep.settings, point)
    prepared = images.of(recipe)
    started = time.perf_counter()
    try:
        accuracy, end, why = *_accuracy(recipe, prepared, is_poor), ""
    except DivergedError as exc:
        accuracy, end, why = 0.0, "diverged", str(exc)
    return Trial(point, round(accuracy, 6), round(time.perf_counter() - started, 3), end, why)


def _accuracy(recipe: Recipe, images: Prepared, is_poor: Callable[[int, float], bool]) -> tuple[float, str]:
    """Train a recipe and keep nothing of it but the accuracy on the validation split, and how it ended."""
    classifier, accuracy = fresh_classifier(recipe, images), 0.0
    for epoch in fit(classifier, recipe, images.train, images.validation):
        accuracy = epoch.metrics["validation_accuracy"]
        if is_poor(epoch.metrics["epoch"], accuracy):
            return accuracy, "pruned"
    if recipe.refit is not None:
        classifier = refitted(classifier, recipe, images.train).classifier
        accuracy = validation_metrics(classifier, images.validation)["validation_accuracy"]
    return accuracy, "finished"


def _rest_of_grid(study: Any, sweep: Sweep, images: Images) -> Iterator[Trial]:
    """The points that the study lacks, each added to it when it has been measured."""
    from optuna.trial import create_trial

    distributions = {parameter.key: parameter.distribution() for parameter in sweep.space}
    there = [trial.point for trial in _trials(study)]
    for point in grid(sweep.space):
        if point in there:
            continue
        trial = _measured(sweep, images, point, lambda *_: False)
        frozen = create_trial(params=point, distributions=distributions, value=trial.accuracy, user_attrs=_notes(trial))
        study.add_trial(frozen)
        yield trial


def _more_of_tpe(study: Any, sweep: Sweep, images: Images) -> Iterator[Trial]:
    """Trials that TPE proposes until there are as many as the sweep wants."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    distributions = {parameter.key: parameter.distribution() for parameter in sweep.space}
    seed = sweep.base().seed * 1_000_003
    for number in range(len(_trials(study)), sweep.total):
        study.sampler = TPESampler(seed=seed + number)
        asked = study.ask(distributions)
        try:
            trial = _measured(sweep, images, asked.params, partial(_is_poor, asked))
        except BaseException:  # Ctrl-C above all: the trial counts for nothing
            study.tell(asked, state=TrialState.FAIL)
            raise
        for key, value in _notes(trial).items():
            asked.set_user_attr(key, value)
        if trial.end == "pruned":
            study.tell(asked, state=TrialState.PRUNED)
        else:
            study.tell(asked, trial.accuracy)
        yield trial


def _is_poor(asked: Any, epoch: int, accuracy: float) -> bool:
    """Whether most trials were better after as many epochs."""
    asked.report(accuracy, epoch)
    return bool(asked.should_prune())


@contextmanager
def _study(folder: Path, identity: dict[str, Any]) -> Iterator[Any]:
    """The folder's study, new or as it was left, for this process alone.

    Raises:
        RunError: if it is another sweep's, or in use.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise RunError(f"sweep must be worked on by one process at a time, got {folder}, which is in use") from exc
        storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / 'study.db').resolve()}")
        try:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2)
            study = optuna.create_study(
                storage=storage, study_name="sweep", direction="maximize", pruner=pruner, load_if_exists=True
            )
            _require_same(study, identity, folder)
            yield study
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _require_same(study: Any, identity: dict[str, Any], folder: Path) -> None:
    """Write what is swept into a new study; compare it with that of an old one, and end the trials that it lost."""
    from optuna.trial import TrialState

    if not study.user_attrs:
        study.set_user_attr("sweep", identity)
    begun = study.user_attrs["sweep"]
    if other := [key for key in identity if begun[key] != json.loads(json.dumps(identity[key]))]:
        raise RunError(
            f"sweep must be the one that {folder} was begun with, got another {' and '.join(other)}: "
            "choose another --id"
        )
    for lost in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        study.tell(lost.number, state=TrialState.FAIL)


def _trials(study: Any) -> list[Trial]:
    """The study's trials that came to an end of any kind but an interruption."""
    return [
        Trial(dict(t.params), *(t.user_attrs[name] for name in ("accuracy", "seconds", "end", "why")))
        for t in study.get_trials(deepcopy=False)
        if "end" in t.user_attrs and t.state.is_finished() and t.state.name != "FAIL"
    ]


def _notes(trial: Trial) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in ("accuracy", "seconds", "end", "why")}
