"""The tables of docs/results.json as Markdown: a short one in the README, all of them in docs/results.md.

    write_tables(load_results())

Both files are written by commands with --record; a test holds them to the results.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from training.abstention_tables import abstention_table
from training.calibration_error import TRADE, trades_ece_for_nll
from training.capacity_tables import capacity_section
from training.figure_lists import figures_lists
from training.files import replace_text
from training.growth_tables import growth_table
from training.intervals import accuracy_interval
from training.marked import explained, markdown, named
from training.peers_tables import peers_text
from training.recipe import load_recipe, notes_of
from training.refit_spec import RefitSpec
from training.soak_tables import soak_section
from training.speed_tables import batch_names, batch_table, beside_table, serving_table
from training.stranger_tables import ood_table

README = Path("README.md")
RESULTS_PAGE = Path("docs/results.md")
DIFFERS = "\\* Not of the same head, images or epoch: docs/results.md says what differs."
INTERVALS = (
    "[ ]: 95 % interval over images of the same kind, Wilson's for an accuracy, else a bootstrap. ±: standard "
    "deviation over trainings with other seeds; a row without it is of one training."
)
START, END = "<!-- results: written by --record -->", "<!-- end of results -->"


def write_tables(results: dict[str, Any], readme: Path = README, page: Path = RESULTS_PAGE) -> None:
    """Write the README's table between its marks, and the page of all tables."""
    text = readme.read_text(encoding="utf-8")
    replace_text(readme, with_table(text, models_table(results)))
    replace_text(page, results_page(results))


def with_table(text: str, table: str) -> str:
    """A README whose marked part is `table`.

    Raises:
        ValueError: if the marks are missing.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README must hold the marks {START!r} and {END!r}, got one without")
    return f"{before}{START}\n{table}\n{END}{after}"


def models_table(results: dict[str, Any]) -> str:
    """What every recipe reaches on its test split, beside what was published for it; what the marks mean."""
    head = ("recipe", "model", "published", "accuracy", *(f"{of} before → after" for of in ("NLL", "ECE")))
    head += ("epochs", "training")
    table = markdown(head, (_model_row(name, row) for name, row in results.get("models", {}).items()))
    below = [DIFFERS] if any(notes_of(name).differs for name in results.get("models", {})) else []
    return explained("\n\n".join([table, INTERVALS, *below]), "models", results)


def results_page(results: dict[str, Any]) -> str:
    """docs/results.md."""
    title = (
        "# Results",
        "Written from [results.json](results.json) by the commands with `--record`. Each section says which images its "
        "figures are of.",
    )
    parts = [*title, *_on_models(results), *_on_experiments(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _on_models(results: dict[str, Any]) -> Sequence[str]:
    """The sections on trained models."""
    return (
        "## Models",
        "Of the test split.",
        models_table(results),
        "\n".join(_notes_lines(results)),
        "Published: the accuracy in the paper or notebook that the recipe is from. NLL in nats and ECE (15 bins of "
        "equal width): before and after calibration. `epochs`: trained, of those in the recipe; what each of them "
        "brought is in [metrics](metrics). Training: time of the epochs, and where.",
        "## Calibration",
        "Of the test split, before and after calibration; that is fitted on held-out images, or named by the "
        "recipe. ECE over 15 bins, of equal width or of equal mass. [ ]: 95 % interval of "
        "the latter figure, where the record is not older.",
        calibration_table(results),
        trades_in_words(results),
        *_on_abstaining(results),
        "## Components",
        "Of the test split, occupancy: the share of a class's images that its most used component takes, least and "
        "most over the classes. Its entropy, over log K: 1 if all components are used alike.",
        "Of a sample of the training images, adjusted Rand indices, 1 for the same groups and 0 for what chance would "
        "give, and BIC. Repeatability: between fits to the same images from other starts of the EM. Stability: between "
        "fits to bootstrap samples. BIC: the number of components with the least; ≥ where that is the most that were "
        "tried, so that more may be better still.",
        components_table(results),
        responsibilities_table(results),
        "## Out-of-distribution detection",
        "AUROC in % [95 % interval] (FPR at 95 % TPR in %) of telling the test split from strangers. Near ones are "
        "test images of another data set of the same kind; of far ones, drawn images among them, it is the mean over "
        "the sets. A row that names one data set alone is of a record from before.",
        ood_table(results),
    )


def _on_experiments(results: dict[str, Any]) -> Sequence[str]:
    """The sections on studies, sweeps and speed."""
    return (
        "## Studies",
        *figures_lists("studies", results),
        "## Sweeps",
        "Accuracy of the validation split after a trial's last epoch; no trial sees the test split.",
        *figures_lists("sweeps", results),
        "## Speed of training",
        "Of training images, or of noise in their shape where real images is false.",
        *figures_lists("training_speed", results),
        "## Speed of serving",
        "Answers a second through HTTP, with wrk on the same cores, over images a second of the bare ONNX graph at a "
        "batch as large as there are connections; medians of the rounds of one run. Bare ms: of one call of the graph.",
        serving_table(results),
        *_on_batch(results),
        *_on_beside(results),
        *capacity_section(results),
        *_on_growth(results),
        *soak_section(results),
        *peers_text(results),
    )


def _on_abstaining(results: dict[str, Any]) -> Sequence[str]:
    """The section on abstaining, once there is a record of it."""
    if not (table := abstention_table(results)):
        return ()
    return (
        "## Abstaining",
        "Of the test split. AURC, in thousandths: the mean error over all shares of images that are answered, the most "
        "confident first; E-AURC: what of it a better order of the same images would save. Prediction sets: how often "
        "the right label is in them (their mean size, in labels), and in those of the worst class. The last column "
        "is the share of test images that are less typical than one in a hundred held-out images: 1 % where both are "
        "alike.",
        table,
    )


def _on_batch(results: dict[str, Any]) -> Sequence[str]:
    """The section on offline scoring, once there is a record of it."""
    if not results.get("batch"):
        return ()
    return (
        "## Speed of offline scoring",
        "Images a second by `score`, or by what one would write instead, from the first image to the table, and of the "
        "whole command. Ratio: to the slower of two bare speeds on all cores, the ONNX graph on decoded arrays "
        "(runtime) and reading and decoding the same files (decoding). Of both: to what the cores would reach if they "
        "decoded and inferred in turn. Peak MB: of all processes, pages that they share counted once. Medians of the "
        "rounds of one run.",
        batch_table(results),
        batch_names(results),
    )


def _on_beside(results: dict[str, Any]) -> Sequence[str]:
    """The section on offline scoring beside a server, once there is a record of it."""
    if not results.get("beside"):
        return ()
    return (
        "## Offline scoring beside a server",
        "A server on the same cores, asked at half of what it can answer by an open-ended load: latency from the "
        "moment that a request was due. Medians of the rounds of one run.",
        beside_table(results),
    )


def _on_growth(results: dict[str, Any]) -> Sequence[str]:
    """The section on how cost grows, once there is a record of it."""
    if not results.get("growth"):
        return ()
    return (
        "## Growth",
        "How many times those at the first point of a curve cost and work are. Cost: the measured figure itself; of "
        "answers and requests a second, the time of one. Work: what the picture says. Cost / work in bold: since a "
        "point before, the cost has grown a tenth more than the work, and more in each round. Failed: requests without "
        "an answer, refused ones among them. Medians of the rounds of one run, with wrk on the same cores.",
        growth_table(results),
    )


def calibration_table(results: dict[str, Any]) -> str:
    """NLL, Brier score and ECE before and after calibration."""
    head = ("recipe", "temperature", "NLL", "Brier", "ECE, equal width", "ECE, equal mass")
    rows = []
    for name, row in results.get("models", {}).items():
        eces = _percent_pair(row, "ece"), _percent_pair(row, "ece_equal_mass")
        temperature = f"{row['temperature']:.3g}"
        rows.append((named("models", name, row), temperature, _pair(row, "nll"), _pair(row, "brier"), *eces))
    return explained(markdown(head, rows), "models", results)


def trades_in_words(results: dict[str, Any]) -> str:
    """The recipes whose temperature lowers the NLL and raises the ECE, and why; nothing if there are none."""
    models = results.get("models", {})
    names = [f"`{name}`" for name, row in models.items() if trades_ece_for_nll(row["before"], row["after"])]
    return f"The NLL falls and the ECE rises for {', '.join(names)}: {TRADE}." if names else ""


def components_table(results: dict[str, Any]) -> str:
    """What the components of every mixture head are worth."""
    head = ("recipe", "fitted by", "K", "largest occupancy", "entropy", "repeatability", "stability", "K of least BIC")
    rows = []
    for name, row in results.get("models", {}).items():
        if (of := row.get("components")) is None:
            continue
        usages = [(of["fitted_by"], of["test"])]
        if "refit" in of:
            usages.append(("a refit of it", of["refit"]))
        for fitted_by, usage in usages:
            largest = [max(shares) for shares in usage["occupancy"]]
            spread = f"{min(largest):.0%} to {max(largest):.0%}".replace("%", " %")
            rest = _of_refits(name, of) if fitted_by != "gradient" else ("", "", "")
            entropy = f"{usage['mean_normalised_entropy']:.2f}"
            rows.append((named("models", name, row), fitted_by, str(of["components"]), spread, entropy, *rest))
    return explained(markdown(head, rows), "models", results)


def responsibilities_table(results: dict[str, Any]) -> str:
    """How the probability of a component holds in refits, before and after its temperature; nothing without records."""
    head = ("recipe", "T", "images", "agree", "NLL", "Brier", "ECE, equal width", "ECE, equal mass", "above 0.999")
    rows = []
    for name, row in results.get("models", {}).items():
        of = (row.get("components") or {}).get("calibration", {})
        if "before" in of:
            figures = (f"{of['temperature']:.3g}", f"{of['images']:,}", f"{100 * of['agreement']:.1f} %")
            errors = (_percent_pair(of, key) for key in ("ece", "ece_equal_mass", "sure"))
            rows.append((named("models", name, row), *figures, _pair(of, "nll"), _pair(of, "brier"), *errors))
    if not rows:
        return ""
    text = (
        "The probability of the likeliest component, before and after its temperature, and the share of refits that "
        "put the image into it too: pairs of bootstrap refits, on training images that neither has seen."
    )
    return f"{text}\n\n{explained(markdown(head, rows), 'models', results)}"


def _model_row(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    mixture = f", K={row['components_per_class']}" if row["components_per_class"] > 1 else ""
    epochs = (
        f"{row['epochs']}" if row["epochs"] == row["recipe_epochs"] else f"{row['epochs']} of {row['recipe_epochs']}"
    )
    notes = notes_of(name)
    return (
        named("models", name, row),
        f"{row['encoder']} · {row['head']}{mixture}, D={row['dim']}",
        f"{notes.published} \\*" if notes.differs else notes.published,
        _accuracy(row),
        _pair(row, "nll"),
        _percent_pair(row, "ece"),
        epochs,
        f"{_duration(row['seconds'])}, {row['device']}",
    )


def _notes_lines(results: dict[str, Any]) -> Iterable[str]:
    for name in results.get("models", {}):
        notes = notes_of(name)
        if notes.differs:
            yield f"- `{name}`, published: {notes.differs}."
        if notes.remark:
            yield f"- `{name}`: {notes.remark}"


def _of_refits(name: str, of: dict[str, Any]) -> tuple[str, str, str]:
    """Repeatability, stability and the number of components with the least criterion; records of before lack some."""
    stability = f"{of['bootstrap_adjusted_rand']:.2f}" if "bootstrap_adjusted_rand" in of else ""
    most, least = max(of.get("bic_tried") or _tried_by(name)), of["bic_least"]
    return f"{of['adjusted_rand']:.2f}", stability, f"≥ {least}" if least == most else str(least)


def _tried_by(name: str) -> range:
    """The numbers of components that BIC compares for a recipe, where every class has more images."""
    refit = load_recipe(name)[1].refit or RefitSpec(features="output")
    return range(1, refit.max_components + 1)


def _accuracy(row: dict[str, Any]) -> str:
    share, images = row["after"]["accuracy"], row["test_images"]
    accuracy = f"{100 * share:.2f} % {_percents(accuracy_interval(round(share * images), images))}"
    if of_seeds := [100 * share for share in row.get("accuracy_of_seeds", {}).values()]:
        accuracy += f"; {mean(of_seeds):.2f} ± {stdev(of_seeds):.2f}, {len(of_seeds)} trainings"
    return accuracy


def _percents(ends: Sequence[float]) -> str:
    return f"[{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]"


def _pair(row: dict[str, Any], key: str) -> str:
    ends = row["after"].get("intervals", {}).get(key)
    interval = "" if ends is None else f" [{ends[0]:.4f}, {ends[1]:.4f}]"
    return f"{row['before'][key]:.4f} → {row['after'][key]:.4f}{interval}"


def _percent_pair(row: dict[str, Any], key: str) -> str:
    """Nothing where the record is older than the metric."""
    if key not in row["after"]:
        return ""
    ends = row["after"].get("intervals", {}).get(key)
    interval = "" if ends is None else f" {_percents(ends)}"
    return f"{100 * row['before'][key]:.2f} → {100 * row['after'][key]:.2f} %{interval}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
