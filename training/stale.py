"""Whether a record of docs/results.json is of what is there today: its recipe, search space, parameters or bundle.

    state_of("models", "mnist-mda", record)      # current, stale or undigested

A record holds the digest of what it was made from, which is worked out here anew from what is there now.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from serving.bundle import MANIFEST, graph_files
from training.benchmark import recipe_timed
from training.digests import recipe_digest, speed_digest
from training.recipe import RecipeError, load_recipe
from training.studies import MADE_FROM
from training.sweeps.report import sweep_digest

MODEL_STORE = Path("model_store")

ResultsSection = Literal[
    "models", "studies", "sweeps", "training_speed", "serving", "batch", "beside", "capacity", "peers", "growth", "soak"
]  # fmt: skip
State = Literal["current", "stale", "undigested"]

MARKS: dict[State, str] = {"current": "", "stale": " †", "undigested": " ‡"}
MEANING: dict[State, str] = {
    "stale": "† Recorded from another recipe, search space, parameters or bundle than is there today.",
    "undigested": "‡ Recorded before digests were kept: what it was made from may have changed since.",
}


def state_of(section: ResultsSection, name: str, record: dict[str, Any]) -> State:
    """How a record stands to what is there today; `undigested` if it does not say what it was made from."""
    if "digest" not in record:
        return "undigested"
    try:
        return "current" if record["digest"] == TODAY[section](name, record) else "stale"
    except (RecipeError, OSError, KeyError):  # what it was made from is no longer there
        return "stale"


def mark_of(section: ResultsSection, name: str, record: dict[str, Any]) -> str:
    """What stands behind the name of a record that is not, or may not be, of what is there today."""
    return MARKS[state_of(section, name, record)]


def meaning_of_marks(section: ResultsSection, results: dict[str, Any]) -> str:
    """A sentence for each mark that the records of a section have."""
    states = {state_of(section, name, record) for name, record in results.get(section, {}).items()}
    return " ".join(sentence for state, sentence in MEANING.items() if state in states)


def _of_model(name: str, record: dict[str, Any]) -> str:
    return recipe_digest(load_recipe(name)[1])


def _of_study(name: str, record: dict[str, Any]) -> str:
    return MADE_FROM[name](record)


def _of_sweep(name: str, record: dict[str, Any]) -> str:
    return sweep_digest(record["recipe"], record["settings"], record["over"], record["search"])


def _of_training_speed(name: str, record: dict[str, Any]) -> str:
    return speed_digest(recipe_timed(name))


def _of_graph(name: str, record: dict[str, Any]) -> str:
    bundle = MODEL_STORE / record["bundle"].replace(":", "/")
    digest: str = json.loads((bundle / MANIFEST).read_bytes())["sha256"][graph_files(record["precision"])[0]]
    return digest


def _of_growth(name: str, record: dict[str, Any]) -> str:
    """A bundle that the measurement makes itself is always of today."""
    digest: str = _of_graph(name, record) if ":" in record["bundle"] else record["digest"]
    return digest


TODAY: dict[ResultsSection, Callable[[str, dict[str, Any]], str]] = {
    "models": _of_model,
    "studies": _of_study,
    "sweeps": _of_sweep,
    "training_speed": _of_training_speed,
    "serving": _of_graph,
    "batch": _of_graph,
    "beside": _of_graph,
    "capacity": _of_graph,
    "growth": _of_growth,
    "soak": _of_graph,
    "peers": _of_graph,
}
