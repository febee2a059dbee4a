"""What a sweep leaves behind: sweep.json, a picture, the best recipe, a table."""

import json
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from training.digests import digest_of, recipe_digest
from training.figures import BLUE, is_logarithmic, new_figure, percent_axis, save_figure, tidy
from training.files import replace_text
from training.recipe import dump_recipe
from training.sweeps.space import Parameter, Value, recipe_at
from training.sweeps.sweep import Sweep, Trial, best_of

TOP = 5


def figures_of(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    """The sweep in few numbers, as they are recorded."""
    best = best_of(trials)
    ends = [trial.end for trial in trials]
    over = {p.key: list(p.values) or {"low": p.low, "high": p.high, "log": p.log} for p in sweep.space}
    search = "grid" if sweep.is_grid else "tpe"
    return {
        "recipe": sweep.name,
        "settings": list(sweep.settings),
        "over": over,
        "search": search,
        "trials": len(trials),
        "diverged": ends.count("diverged"),
        "pruned": ends.count("pruned"),
        "best": {"validation_accuracy": best.accuracy, **best.point},
        "seconds": round(sum(trial.seconds for trial in trials), 1),
        "seconds_per_trial": round(statistics.median(trial.seconds for trial in trials), 3),
        "digest": sweep_digest(sweep.recipe, sweep.settings, over, search),
    }


def sweep_digest(recipe: str, settings: Sequence[str], over: dict[str, Any], search: str) -> str:
    """The digest of a sweep: its recipe at the first point of the space, the settings, the space, how it is searched.

    Raises:
        RecipeError: if there is no such recipe, or the schema refuses the point.
    """
    first = {key: values["low"] if isinstance(values, dict) else values[0] for key, values in over.items()}
    base = recipe_digest(recipe_at(recipe, settings, first))
    return digest_of({"recipe": base, "settings": list(settings), "over": over, "search": search})


def write_sweep_report(sweep: Sweep, trials: Sequence[Trial], folder: Path) -> list[Path]:
    """Write sweep.json, best.toml and sweep.png."""
    best = best_of(trials)
    rows = [{"point": t.point, "validation_accuracy": t.accuracy, "seconds": t.seconds, "end": t.end} for t in trials]
    text = json.dumps({**figures_of(sweep, trials), "all": rows}, indent=2)
    recipe = recipe_at(sweep.recipe, sweep.settings, best.point)
    replace_text(folder / "sweep.json", text + "\n")
    replace_text(folder / "best.toml", dump_recipe(recipe))
    return [folder / "sweep.json", folder / "best.toml", save_figure(sweep_figure(sweep, trials), folder / "sweep.png")]


def table_of_trials(sweep: Sweep, trials: Sequence[Trial]) -> Table:
    """The best trials."""
    keys = [parameter.key for parameter in sweep.space]
    table = Table("", "validation", *keys, "seconds", box=None)
    ranked = sorted((trial for trial in trials if trial.end == "finished"), key=lambda trial: -trial.accuracy)
    for rank, trial in enumerate(ranked[:TOP], start=1):
        values = [in_words(trial.point[key]) for key in keys]
        table.add_row(str(rank), f"{trial.accuracy:.2%}", *values, f"{trial.seconds:.1f}")
    return table


def sweep_figure(sweep: Sweep, trials: Sequence[Trial]) -> Any:
    """A heat map over a grid of two parameters, points over two ranges, or one panel a parameter."""
    space = [parameter for parameter in sweep.space if len(parameter.values) != 1] or list(sweep.space)
    if len(space) != 2:
        return _slices(space, trials, sweep)
    figure, axes = new_figure(8, 5.2)
    map_ = _heat_map(axes[0, 0], space, trials) if sweep.is_grid else _scatter(axes[0, 0], space, trials)
    bar = figure.colorbar(map_, ax=axes[0, 0], label="validation accuracy")
    percent_axis(bar.ax.yaxis, decimals=int(np.ptp(list(_limits(trials).values())) < 0.05))
    axes[0, 0].set(title=_title(sweep, trials), xlabel=space[0].key, ylabel=space[1].key)
    _mark_best(axes[0, 0], space, trials)
    return figure


def in_words(value: Value) -> str:
    """A value as short as it can be told from its neighbours."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Scale:
    """Where the values of a parameter lie on an axis: in the logarithm, as they are, or side by side."""

    def __init__(self, parameter: Parameter):
        self.values = list(parameter.values or (parameter.low, parameter.high))
        self.numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)
        numbers = [float(v) for v in self.values if self.numeric]
        self.log = bool(numbers) and (parameter.log or is_logarithmic(numbers))
        self.even = self.numeric and (self.log or 0 not in numbers or not is_logarithmic([v for v in numbers if v]))
        if self.even:
            self.values.sort(key=float)

    def place(self, value: Value) -> float:
        """The coordinate of a value."""
        return float(value) if self.even else float(self.values.index(value))

    def edges(self) -> list[float]:
        """The borders between the values' cells, one more than values."""
        places = [self.place(value) for value in self.values]
        if len(places) == 1:
            return [places[0] * 0.5, places[0] * 2] if self.log else [places[0] - 0.5, places[0] + 0.5]
        if self.log:
            inner = [(a * b) ** 0.5 for a, b in pairwise(places)]
            return [places[0] ** 2 / inner[0], *inner, places[-1] ** 2 / inner[-1]]
        inner = [(a + b) / 2 for a, b in pairwise(places)]
        return [2 * places[0] - inner[0], *inner, 2 * places[-1] - inner[-1]]

    def dress(self, axes: Any, which: str) -> None:
        """Give the axis `x` or `y` its scale and, for values side by side, their names."""
        if self.log:
            axes.set(**{f"{which}scale": "log"})
        elif not self.even:
            names = [in_words(value) for value in self.values]
            axes.set(**{f"{which}ticks": range(len(names)), f"{which}ticklabels": names})
            axes.set(**{f"{which}lim": (-0.5, len(names) - 0.5)})


def _heat_map(axes: Any, space: Sequence[Parameter], trials: Sequence[Trial]) -> Any:
    across, up = Scale(space[0]), Scale(space[1])
    cells = np.full((len(up.values), len(across.values)), np.nan)
    for trial in trials:
        if trial.end == "finished":
            x, y = (scale.values.index(trial.point[p.key]) for scale, p in zip((across, up), space, strict=True))
            cells[y, x] = max(trial.accuracy, np.nan_to_num(cells[y, x]))
    across.dress(axes, "x")
    up.dress(axes, "y")
    axes.set_facecolor("0.85")
    return axes.pcolormesh(across.edges(), up.edges(), np.ma.masked_invalid(cells), cmap="viridis", **_limits(trials))


def _scatter(axes: Any, space: Sequence[Parameter], trials: Sequence[Trial]) -> Any:
    across, up = Scale(space[0]), Scale(space[1])
    across.dress(axes, "x")
    up.dress(axes, "y")
    shown = [trial for trial in trials if trial.end == "finished"]
    x, y = ([scale.place(t.point[p.key]) for t in shown] for scale, p in zip((across, up), space, strict=True))
    tidy(axes)
    colours = [trial.accuracy for trial in shown]
    return axes.scatter(x, y, c=colours, cmap="viridis", s=60, edgecolors="0.3", **_limits(trials))


def _limits(trials: Sequence[Trial]) -> dict[str, float]:
    """The ends of the colours: of the accuracies, a percentage point apart at least."""
    shown = [trial.accuracy for trial in trials if trial.end == "finished"]
    high = max(shown)
    return {"vmin": min([*shown, high - 0.01]), "vmax": high}


def _mark_best(axes: Any, space: Sequence[Parameter], trials: Sequence[Trial]) -> None:
    best = best_of(trials)
    x, y = (Scale(parameter).place(best.point[parameter.key]) for parameter in space)
    axes.plot([x], [y], marker="*", markersize=15, color="white", markeredgecolor="black", linestyle="none")


def _slices(space: Sequence[Parameter], trials: Sequence[Trial], sweep: Sweep) -> Any:
    """Accuracy against each parameter, side by side."""
    figure, axes = new_figure(max(6.0, 3.4 * len(space)), 4, 1, len(space), sharey=True)
    shown = [trial for trial in trials if trial.end == "finished"]
    best = best_of(trials)
    for index, (panel, parameter) in enumerate(zip(axes[0], space, strict=True)):
        scale = Scale(parameter)
        scale.dress(panel, "x")
        places = [scale.place(trial.point[parameter.key]) for trial in shown]
        panel.plot(places, [trial.accuracy for trial in shown], "o", color=BLUE, alpha=0.6)
        panel.plot([scale.place(best.point[parameter.key])], [best.accuracy], "*", color="black", markersize=13)
        tidy(panel, x=parameter.key, y="" if index else "validation accuracy")
    percent_axis(axes[0, 0].yaxis)
    figure.suptitle(_title(sweep, trials), fontsize=12)
    return figure


def _title(sweep: Sweep, trials: Sequence[Trial]) -> str:
    best, lost = best_of(trials), sum(trial.end == "diverged" for trial in trials)
    at = ", ".join(f"{key.split('.')[-1]} {in_words(value)}" for key, value in best.point.items())
    diverged = f", {lost} diverged (without colour)" if lost else ""
    return f"{sweep.name}: {len(trials)} trials{diverged}\nbest {best.accuracy:.2%} at {at} (star)"
