"""The tables of docs/results.json as Markdown: a short one in the README, all of them in docs/results.md.

    write_tables(load_results())

Both files are written by commands with --record; a test holds them to the results.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from training.analysis.ood import SCORE_NAMES
from training.calibration_error import TRADE, trades_ece_for_nll
from training.files import replace_text
from training.recipe import notes_of

README = Path("README.md")
RESULTS_PAGE = Path("docs/results.md")
MOST_NUMBERS = 12  # of a list that stands in a line
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
    """What every recipe reaches on its test split, beside what was published for it."""
    head = ("recipe", "model", "published", "accuracy", *(f"{of} before → after" for of in ("NLL", "ECE")))
    head += ("epochs", "training")
    return markdown(head, (_model_row(name, row) for name, row in results.get("models", {}).items()))


def results_page(results: dict[str, Any]) -> str:
    """docs/results.md."""
    parts = [
        "# Results",
        "Written from [results.json](results.json) by the commands with `--record`; every figure is of the test split.",
        "## Models",
        models_table(results),
        "\n".join(f"- `{name}`: {text}" for name in results.get("models", {}) if (text := notes_of(name).remark)),
        "Published: the accuracy in the paper or notebook with the same encoder and head. NLL in nats and ECE (15 bins "
        "of equal width): before and after the temperature. `epochs`: trained, of those in the recipe; what each of "
        "them brought is in [metrics](metrics). Training: time of the epochs, and where.",
        "## Calibration",
        "Before and after the temperature; ECE over 15 bins, of equal width or of equal mass.",
        calibration_table(results),
        trades_in_words(results),
        "## Components",
        "Occupancy: the share of a class's test images that its most used component takes, least and most over the "
        "classes. Entropy of the occupancy, over log K: 1 if all components are used alike. Adjusted Rand index of the "
        "assignments between three seeds of the EM. BIC: the number of components, of those tried, with the least.",
        components_table(results),
        "## Out-of-distribution detection",
        "AUROC in % (FPR at 95 % TPR in %) of telling the test split from that of a data set the model does not know.",
        ood_table(results),
        "## Studies",
        *(_figures_list(name, row) for name, row in results.get("studies", {}).items()),
        "## Sweeps",
        *(_figures_list(name, row) for name, row in results.get("sweeps", {}).items()),
        "## Speed of training",
        *(_figures_list(name, row) for name, row in results.get("training_speed", {}).items()),
        "## Speed of serving",
        "Answers a second through HTTP, with wrk on the same cores, over images a second of the bare ONNX graph at a "
        "batch as large as there are connections; medians of the rounds of one run. Bare ms: of one call of the graph.",
        serving_table(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def serving_table(results: dict[str, Any]) -> str:
    """What of the bare graph's speed arrives at the other end of HTTP."""
    head = ("model", "precision", "at once", "answers/s", "bare images/s", "ratio", "p50 ms", "p99 ms", "bare ms", "on")
    measured = ("connections", "answers_per_second", "bare_per_second", "ratio", "p50_ms", "p99_ms", "bare_ms")
    rows = [
        (f"`{row['bundle']}`", row["precision"], *(f"{at[key]:g}" for key in measured), row["machine"])
        for row in results.get("serving", {}).values()
        for at in row["rows"]
    ]
    return markdown(head, rows)


def calibration_table(results: dict[str, Any]) -> str:
    """NLL, Brier score and ECE before and after the temperature."""
    head = ("recipe", "temperature", "NLL", "Brier", "ECE, equal width", "ECE, equal mass")
    rows = []
    for name, row in results.get("models", {}).items():
        eces = _percent_pair(row, "ece"), _percent_pair(row, "ece_equal_mass")
        rows.append((f"`{name}`", f"{row['temperature']:.3g}", _pair(row, "nll"), _pair(row, "brier"), *eces))
    return markdown(head, rows)


def trades_in_words(results: dict[str, Any]) -> str:
    """The recipes whose temperature lowers the NLL and raises the ECE, and why; nothing if there are none."""
    models = results.get("models", {})
    names = [f"`{name}`" for name, row in models.items() if trades_ece_for_nll(row["before"], row["after"])]
    return f"The NLL falls and the ECE rises for {', '.join(names)}: {TRADE}." if names else ""


def components_table(results: dict[str, Any]) -> str:
    """What the components of every mixture head are worth."""
    head = ("recipe", "fitted by", "K", "largest occupancy", "entropy", "adjusted Rand", "K of least BIC")
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
            rest = (f"{of['adjusted_rand']:.2f}", str(of["bic_least"])) if fitted_by != "gradient" else ("", "")
            entropy = f"{usage['mean_normalised_entropy']:.2f}"
            rows.append((f"`{name}`", fitted_by, str(of["components"]), spread, entropy, *rest))
    return markdown(head, rows)


def ood_table(results: dict[str, Any]) -> str:
    """How well each score of a network tells strangers."""
    rows = []
    for name, row in results.get("models", {}).items():
        if of := row.get("ood"):
            cells = [_separation(of["scores"].get(score)) for score in SCORE_NAMES]
            rows.append((f"`{name}`", of["strangers"], *cells))
    return markdown(("recipe", "strangers", *SCORE_NAMES.values()), rows)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _model_row(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    mixture = f", K={row['components_per_class']}" if row["components_per_class"] > 1 else ""
    epochs = (
        f"{row['epochs']}" if row["epochs"] == row["recipe_epochs"] else f"{row['epochs']} of {row['recipe_epochs']}"
    )
    return (
        f"`{name}`",
        f"{row['encoder']} · {row['head']}{mixture}, D={row['dim']}",
        notes_of(name).published,
        _accuracy(row),
        _pair(row, "nll"),
        _percent_pair(row, "ece"),
        epochs,
        f"{_duration(row['seconds'])}, {row['device']}",
    )


def _accuracy(row: dict[str, Any]) -> str:
    accuracy = f"{100 * row['after']['accuracy']:.2f} %"
    if of_seeds := [100 * share for share in row.get("accuracy_of_seeds", {}).values()]:
        accuracy += f" ({mean(of_seeds):.2f} ± {stdev(of_seeds):.2f}, {len(of_seeds)} seeds)"
    return accuracy


def _pair(row: dict[str, Any], key: str) -> str:
    return f"{row['before'][key]:.4f} → {row['after'][key]:.4f}"


def _percent_pair(row: dict[str, Any], key: str) -> str:
    """Nothing where the record is older than the metric."""
    if key not in row["after"]:
        return ""
    return f"{100 * row['before'][key]:.2f} → {100 * row['after'][key]:.2f} %"


def _separation(score: dict[str, float] | None) -> str:
    return "" if score is None else f"{100 * score['auroc']:.1f} ({100 * score['fpr_at_95_tpr']:.0f})"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _figures_list(name: str, figures: dict[str, Any]) -> str:
    """Figures without a table of their own: numbers, words and short lists of numbers, one a line."""
    lines = [f"- {key}: {value}" for key, value in _leaves(figures) if not key.startswith("versions")]
    return "\n".join([f"### {name}", "", *lines])


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}, ")
        elif not isinstance(value, list):
            yield name, value
        elif len(value) <= MOST_NUMBERS and all(isinstance(number, int | float) for number in value):
            yield name, ", ".join(map(str, value))
