"""Records that went stale: what each holds a digest of, and how the tables mark one that no longer matches."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from training.recipe import load_recipe
from training.results import load_results, model_figures
from training.stale import MARKS, MEANING, ResultsSection, mark_of, meaning_of_marks, state_of
from training.studies import MADE_FROM, STUDIES
from training.sweeps.report import figures_of
from training.sweeps.space import parse_space
from training.sweeps.sweep import Sweep, Trial
from training.tables import components_table, models_table, results_page

ROOT = Path(__file__).resolve().parents[1]
RESULTS = load_results(ROOT / "docs" / "results.json")
ALL: list[tuple[ResultsSection, str]] = [(section, name) for section, rows in RESULTS.items() for name in rows]


@cache
def page() -> str:
    return results_page(RESULTS)


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def model_row(overrides: list[str], recipe_epochs: int = 40) -> dict[str, Any]:
    """A record of a run of cifar10-lda, with overrides."""
    run: dict[str, Any] = {
        "id": "a", "encoder": "six-conv", "head": "lda", "dim": 9, "components": 1, "parameters": 1, "epochs": 12,
        "seconds": 1.0, "device": "CPU", "temperature": 1.0, "splits": {},
    }  # fmt: skip
    quality = {
        "images": 10,
        "accuracy": 0.9,
        "nll": 0.3,
        "brier": 0.1,
        "ece": 0.01,
        "ece_equal_mass": 0.01,
        "aurc": 0.01,
        "e_aurc": 0.005,
        "intervals": {},
    }
    report = {"run": run, "calibration": {"before": quality, "after": quality}, "components": None, "ood": {}}
    report["abstention"] = {"sets": None, "typicality": None}
    return model_figures(report, load_recipe("cifar10-lda", overrides)[1], recipe_epochs)


@pytest.mark.parametrize(
    ("overrides", "state"),
    [
        ([], "current"),
        (["seed=3", "fit.precision=float32"], "current"),
        (["fit.epochs=12"], "current"),  # fewer than the recipe has; the table says how many
        (["fit.lr=0.1"], "stale"),
        (["encoder.dim=8"], "stale"),
    ],
)
def test_model_is_stale_where_its_run_had_another_recipe(overrides: list[str], state: str) -> None:
    assert state_of("models", "cifar10-lda", model_row(overrides)) == state


def test_model_is_stale_where_its_recipe_has_other_epochs_now() -> None:
    assert state_of("models", "cifar10-lda", model_row([], recipe_epochs=29)) == "stale"


def test_model_whose_recipe_is_gone_is_stale() -> None:
    assert state_of("models", "of-yesterday", model_row([])) == "stale"


def sweep_record(settings: tuple[str, ...] = (), over: str = "fit.lr=1e-3:1e-2:log") -> dict[str, Any]:
    sweep = Sweep("cifar10-softmax", settings, parse_space([over]), trials=1)
    return figures_of(sweep, [Trial({"fit.lr": 0.001}, 0.5, 1.0)])


def test_sweep_is_stale_where_its_base_recipe_settings_or_space_were_others() -> None:
    base = sweep_record()

    assert state_of("sweeps", "cifar10-softmax", base) == "current"
    for other in (sweep_record(("fit.epochs=8",)), sweep_record(over="fit.lr=1e-3,1e-2")):
        assert state_of("sweeps", "cifar10-softmax", base | {"digest": other["digest"]}) == "stale"
    assert state_of("sweeps", "cifar10-softmax", base | {"over": {"fit.gone": [1]}}) == "stale"


@pytest.mark.parametrize("section", ["serving", "batch", "beside", "soak"])
def test_speed_is_stale_where_the_bundles_graph_is_another(
    section: ResultsSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path("model_store/fashion-mnist-mda-best/1")
    shutil.copytree(bundle, tmp_path / bundle)
    monkeypatch.chdir(tmp_path)
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    graphs = {"float32": "model.onnx", "int8": "model.int8.onnx"}
    records = {
        precision: {"bundle": "fashion-mnist-mda-best:1", "precision": precision, "digest": manifest["sha256"][graph]}
        for precision, graph in graphs.items()
    }

    assert {state_of(section, name, record) for name, record in records.items()} == {"current"}
    manifest["sha256"]["model.int8.onnx"] = "0" * 64
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert {record["precision"]: state_of(section, name, record) for name, record in records.items()} == {
        "float32": "current", "int8": "stale",
    }  # fmt: skip
    (bundle / "bundle.json").unlink()
    assert {state_of(section, name, record) for name, record in records.items()} == {"stale"}


def test_every_study_says_what_it_is_made_from() -> None:
    recorded = {"run": "cifar100-lda-best", "recipes": ["cifar10-mlp", "cifar10-cnn"]}

    digests = [MADE_FROM[name](recorded) for name in STUDIES]

    assert len(set(digests)) == len(STUDIES)
    assert MADE_FROM["class-means"]({"run": "cifar100-lda"}) != MADE_FROM["class-means"](recorded)


def test_record_without_a_digest_is_told_from_a_stale_one() -> None:
    row = model_row([])
    del row["digest"]

    assert state_of("models", "cifar10-lda", row) == "undigested"


# What the tables show


def test_tables_mark_records_and_say_what_the_marks_mean() -> None:
    undigested = model_row([])
    del undigested["digest"]
    results = {"models": {"cifar10-cnn": undigested, "cifar10-lda": model_row([]), "cifar10-mlp": model_row([])}}

    table = models_table(results)

    assert "| `cifar10-cnn` ‡ |" in table
    assert "| `cifar10-lda` |" in table
    assert "| `cifar10-mlp` † |" in table
    assert table.splitlines()[-1] == f"{MEANING['stale']} {MEANING['undigested']}"


def test_tables_without_marks_explain_none() -> None:
    results = {"models": {"cifar10-lda": model_row([])}}

    assert meaning_of_marks("models", results) == ""
    assert not set("†‡") & set(models_table(results) + components_table(results))


def test_sweep_under_another_base_recipe_is_marked() -> None:
    of_before = sweep_record() | {"digest": sweep_record(("fit.epochs=8", "fit.momentum=0.0"))["digest"]}

    section = results_page({"sweeps": {"cifar10-softmax": of_before, "again": sweep_record()}}).partition("## Sweeps")[
        2
    ]

    assert "### cifar10-softmax †\n\n- recipe: cifar10-softmax\n" in section
    assert "### again\n\n- recipe: cifar10-softmax\n" in section
    assert section.count(MEANING["stale"]) == 1


@pytest.mark.parametrize(("section", "name"), ALL)
def test_page_shows_the_mark_of_every_record(section: ResultsSection, name: str) -> None:
    record = RESULTS[section][name]
    shown = record["bundle"] if section in ("serving", "batch", "beside", "capacity", "peers", "soak") else name

    mark = mark_of(section, name, record)

    assert mark in MARKS.values()
    of_photo = section == "serving" and "image" in record
    behind = f", {record['image']} of " if of_photo else " in " if section == "peers" else " |"
    assert f"`{shown}`{mark}{behind}" in page() or f"### {shown}{mark}\n" in page()
    assert "digest:" not in page()
