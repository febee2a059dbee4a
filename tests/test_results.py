"""Results: figures are stamped and kept, and the README states what docs/results.json holds."""

import contextlib
import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_samples import project_in
from typer.testing import CliRunner

from training.__main__ import app
from training.data import Sources
from training.images import load_images
from training.recipe import load_recipe, notes_of, recipe_names
from training.results import load_results, model_figures, record
from training.run import Run
from training.tables import (
    END,
    START,
    components_table,
    models_table,
    responsibilities_table,
    results_page,
    with_table,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = load_results(ROOT / "docs" / "results.json")

REPORT: dict[str, Any] = {
    "run": {
        "recipe": "cifar10-lda", "id": "main", "data": "cifar10", "encoder": "six-conv", "head": "lda",
        "covariance": "spherical", "dim": 9, "components": 1, "parameters": 1_150_000, "epochs": 12, "seconds": 600.4,
        "device": "CPU, 2 threads", "temperature": 1.25,
        "splits": {"train": 48_000, "validation": 2_000, "test": 10_000},
        "started": "2026-11-22T04:00:00+00:00", "versions": {"torch": "2.13.0"},
    },
    "calibration": {
        "before": {
            "images": 10_000, "accuracy": 0.9012, "nll": 0.4, "brier": 0.2, "ece": 0.0412, "ece_equal_mass": 0.0375,
            "aurc": 0.013, "e_aurc": 0.008,
            "intervals": {"nll": [0.29, 0.31], "ece": [0.004, 0.008], "ece_equal_mass": [0.005, 0.009]},
            "reliability": {},
        },
        "after": {
            "images": 10_000, "accuracy": 0.9012, "nll": 0.3, "brier": 0.1, "ece": 0.0065, "ece_equal_mass": 0.0071,
            "aurc": 0.0123, "e_aurc": 0.00678,
            "intervals": {"nll": [0.29, 0.31], "ece": [0.004, 0.008], "ece_equal_mass": [0.005, 0.009]},
            "reliability": {},
        },
    },
    "components": None,
    "abstention": {"sets": None, "typicality": None},
    "ood": {
        "sets": {
            "cifar100": {
                "kind": "near", "images": 10_000, "flagged": None,
                "scores": {"log_density": {"auroc": 0.857, "auroc_interval": [0.851, 0.862], "fpr_at_95_tpr": 0.61}},
            },
            "noise": {"kind": "far", "scores": {}}, "text": {"kind": "far", "scores": {}},
        },
        "means": {
            "near": {"log_density": {"auroc": 0.857, "fpr_at_95_tpr": 0.61}},
            "far": {"log_density": {"auroc": 0.9, "fpr_at_95_tpr": 0.5}, "knn": {"auroc": 0.95, "fpr_at_95_tpr": 0.2}},
        },
        "omitted": {}, "missing": {},
    },
}  # fmt: skip


def test_recorded_figures_are_stamped_and_replace_those_of_their_name(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    record("studies", "boxes", {"iou": 0.5}, file)
    record("studies", "boxes", {"iou": 0.75}, file)
    record("sweeps", "a", {"best": 1}, file)

    results = json.loads(file.read_text())
    assert list(results) == ["studies", "sweeps"]
    assert results["studies"]["boxes"]["iou"] == 0.75
    assert date.fromisoformat(results["studies"]["boxes"]["date"])
    assert results["studies"]["boxes"]["versions"]["torch"] == torch.__version__
    assert "CPU cores" in results["studies"]["boxes"]["machine"]


def test_model_row_states_what_the_report_measured() -> None:
    row = model_figures(REPORT, load_recipe("cifar10-lda", ["fit.epochs=12"])[1], recipe_epochs=40)

    assert models_table({"models": {"cifar10-lda": row}}).splitlines()[2] == (
        "| `cifar10-lda` | six-conv · lda, D=9 | 90.42 | 90.12 % [89.52, 90.69] | 0.4000 → 0.3000 [0.2900, 0.3100] | "
        "4.12 → 0.65 % [0.40, 0.80] | 12 of 40 | "
        "10 min, CPU, 2 threads |"
    )
    page = results_page({"models": {"cifar10-lda": row}})
    assert (
        "| `cifar10-lda` | 1.25 | 0.4000 → 0.3000 [0.2900, 0.3100] | 0.2000 → 0.1000 | 4.12 → 0.65 % [0.40, 0.80] | "
        "3.75 → 0.71 % [0.50, 0.90] |"
    ) in page
    assert "the ECE rises" not in page
    assert "| `cifar10-lda` | near: cifar100 | 85.7 [85.10, 86.20] (61) |  |\n" in page
    assert "| `cifar10-lda` | far: 2 sets | 90.0 (50) | 95.0 (20) |\n" in page
    assert "| `cifar10-lda` | 12.3 | 6.8 |  |  |  |  |  |  |  |" in page
    assert "- `cifar10-lda`: With random squares" in page
    assert "- `cifar100-lda`" not in page


def test_strangers_of_a_record_of_before_are_of_one_data_set() -> None:
    score = {"auroc": 0.857, "auroc_interval": [0.851, 0.862], "fpr_at_95_tpr": 0.61}
    row = model_figures(REPORT, load_recipe("cifar10-lda", ["fit.epochs=12"])[1], recipe_epochs=40)
    row["ood"] = {"strangers": "cifar100", "scores": {"log_density": score}, "omitted": {}}
    del row["after"]["aurc"]

    page = results_page({"models": {"cifar10-lda": row}})

    assert "| recipe | strangers | log-density |\n" in page
    assert "| `cifar10-lda` | cifar100 | 85.7 [85.10, 86.20] (61) |\n" in page
    assert "## Abstaining" not in page


def test_prediction_sets_and_typicality_are_recorded_and_shown() -> None:
    worst = [{"class": 3, "images": 100, "coverage": 0.71}]
    ninety = {
        "images": 10_000, "coverage": 0.9012, "mean_size": 1.234,
        "classes": {"least": 0.71, "mean": 0.9, "worst": worst},
        "sizes": [{"labels": 1, "images": 9000, "coverage": 1}],
    }  # fmt: skip
    typicality = {
        "images": 10_000, "held_out": 2_500, "count": [1],
        "below": {"0.01": {"share": 0.0103, "interval": [0.008, 0.012]}},
    }  # fmt: skip
    abstention = {"sets": {"0.8": None, "0.9": ninety, "0.95": None, "0.99": None}, "typicality": typicality}
    report = REPORT | {"abstention": abstention}

    row = model_figures(report, load_recipe("cifar10-lda", ["fit.epochs=12"])[1], recipe_epochs=40)

    assert row["prediction_sets"]["0.9"] == {key: ninety[key] for key in ("images", "coverage", "mean_size", "classes")}
    assert row["prediction_sets"]["0.99"] is None
    assert row["typicality"] == {key: typicality[key] for key in ("images", "held_out", "below")}
    assert (
        "| `cifar10-lda` | 12.3 | 6.8 |  | 90.12 % (1.23) |  |  | 71.0 % | 2,500 | 1.03 % [0.80, 1.20] |"
    ) in results_page({"models": {"cifar10-lda": row}})


COMPONENTS: dict[str, Any] = {
    "components": 2, "covariance": "full", "fitted_by": "em",
    "test": {"occupancy": [[0.25, 0.75]], "mean_normalised_entropy": 0.8},
    "repeatability": {"adjusted_rand": 0.91}, "stability": {"adjusted_rand": 0.62},
    "bic": {"components": [1, 2, 3, 4, 5], "least": 5},
}  # fmt: skip


@pytest.mark.parametrize(("least", "tried", "shown"), [(5, 5, "≥ 5"), (4, 5, "4"), (1, 5, "1"), (3, 3, "≥ 3")])
def test_components_row_tells_repeatability_from_stability_and_the_end_of_what_was_tried(
    least: int, tried: int, shown: str
) -> None:
    bic = {"components": list(range(1, tried + 1)), "least": least}
    report = REPORT | {"components": COMPONENTS | {"bic": bic}}
    row = model_figures(report, load_recipe("digits-mda")[1], recipe_epochs=25)

    table = components_table({"models": {"digits-mda": row}}).splitlines()

    assert table[0].endswith("| repeatability | stability | K of least BIC |")
    assert table[2] == f"| `digits-mda` | em | 2 | 75 % to 75 % | 0.80 | 0.91 | 0.62 | {shown} |"


def test_components_row_of_before_shows_no_stability_and_what_its_recipe_tries() -> None:
    row = model_figures(REPORT | {"components": COMPONENTS}, load_recipe("digits-mda")[1], recipe_epochs=25)
    del row["components"]["bootstrap_adjusted_rand"], row["components"]["bic_tried"]

    assert components_table({"models": {"digits-mda": row}}).splitlines()[2].endswith("| 0.91 |  | ≥ 5 |")


def test_responsibilities_are_shown_before_and_after_where_they_were_calibrated() -> None:
    quality = {"nll": 0.5, "brier": 0.2, "ece": 0.08, "ece_equal_mass": 0.07, "sure": 0.6}
    calibration = {
        "temperature": 3.21, "why": "…", "images": 12_345, "agreement": 0.876,
        "before": quality, "after": {"nll": 0.3, "brier": 0.1, "ece": 0.01, "ece_equal_mass": 0.02, "sure": 0.1},
    }  # fmt: skip
    report = REPORT | {"components": COMPONENTS | {"calibration": calibration}}
    row = model_figures(report, load_recipe("digits-mda")[1], recipe_epochs=25)

    table = responsibilities_table({"models": {"digits-mda": row}}).splitlines()

    assert table[-1] == (
        "| `digits-mda` | 3.21 | 12,345 | 87.6 % | 0.5000 → 0.3000 | 0.2000 → 0.1000 | 8.00 → 1.00 % | 7.00 → 2.00 % | "
        "60.00 → 10.00 % |"
    )
    assert "\n".join(table) in results_page({"models": {"digits-mda": row}})
    named = REPORT | {"components": COMPONENTS | {"calibration": {"temperature": 2.0, "why": "named by the recipe"}}}
    for other in (named, REPORT | {"components": COMPONENTS}, REPORT):
        row = model_figures(other, load_recipe("digits-mda")[1], recipe_epochs=25)
        assert responsibilities_table({"models": {"digits-mda": row}}) == ""


def test_published_figure_of_something_else_is_marked_and_explained() -> None:
    row = model_figures(REPORT, load_recipe("cifar10-svm")[1], recipe_epochs=60)

    table = models_table({"models": {"cifar10-svm": row}})

    assert "| 40.88 \\* |" in table
    assert table.splitlines()[-1] == "\\* Not of the same head, images or epoch: docs/results.md says what differs."
    assert f"- `cifar10-svm`, published: {notes_of('cifar10-svm').differs}." in results_page(
        {"models": {"cifar10-svm": row}}
    )


@pytest.mark.parametrize("name", recipe_names())
def test_remarks_hold_no_figures_that_no_record_has(name: str) -> None:
    notes = notes_of(name)

    assert not re.search(r"\d\s*(%|points|hours|minutes|s\b)|\d\.\d", f"{notes.differs} {notes.remark}")


def test_page_says_which_images_its_figures_are_of() -> None:
    page = results_page(RESULTS)

    assert "every figure is of the test split" not in page
    assert "## Models\n\nOf the test split.\n" in page
    assert re.search(r"### class-means( [†‡])?\n\n- measured on: the training split\n", page)
    assert "## Sweeps\n\nAccuracy of the validation split after a trial's last epoch" in page


def test_page_names_the_models_whose_ece_rises_while_their_nll_falls() -> None:
    quality = {"accuracy": 0.9, "nll": 0.4, "brier": 0.2, "ece": 0.01}
    better, traded = {**quality, "nll": 0.3, "ece": 0.005}, {**quality, "nll": 0.3, "ece": 0.02}
    worse = {**quality, "nll": 0.5, "ece": 0.02}
    row = model_figures(REPORT, load_recipe("cifar10-lda", ["fit.epochs=12"])[1], recipe_epochs=12) | {
        "before": quality
    }
    after = {"digits-mda": better, "digits-mlp": traded, "digits-softmax": worse, "cifar10-mlp": traded}

    page = results_page({"models": {name: row | {"after": quality_after} for name, quality_after in after.items()}})

    assert (
        "The NLL falls and the ECE rises for `digits-mlp`, `cifar10-mlp`: T is fitted to the NLL, which weighs every "
        "error by how sure it was; the ECE compares means over bins, so what lowers the one may raise the other.\n"
    ) in page
    assert "| `digits-mlp` † | 1.25 | 0.4000 → 0.3000 | 0.2000 → 0.2000 | 1.00 → 2.00 % |  |" in page


BATCH: dict[str, Any] = {
    "bundle": "mnist-mda:1", "precision": "float32", "images": "100,000 PNGs of 28 x 28 pixels", "cores": 2,
    "runtime_per_second": 1000.0, "runtime_layout": "2 x 1", "decoding_per_second": 9000.0, "pillow_per_second": 9500.0,
    "both_per_second": 900.0, "limit": "runtime", "machine": "2 CPU cores, x86_64", "digest": "0" * 64,
    "rows": [
        {"by": by, "form": form, "images_per_second": rate, "command_images_per_second": rate - 10,
         "ratio": rate / 1000, "ratio_of_both": round(rate / 900, 3), "peak_mb": peak}
        for by, form, rate, peak in (("score", "tar", 930.0, 310), ("DataLoader", "files", 600.0, 1200))
    ],
    "names": {"count": 10_000_000, "seconds_to_first_image": 3.5, "seconds_to_first_part": 12.5, "peak_mb": 640},
}  # fmt: skip


def test_offline_scoring_stands_beside_its_peers_and_the_bare_speeds() -> None:
    page = results_page({"batch": {"mnist-mda:1 float32": BATCH}})

    what = "| `mnist-mda:1` † | float32 | 100,000 PNGs of 28 x 28 pixels |"
    assert (
        f"{what} tar | score | 930 | 920 | 0.93 | 1.033 | 310 | 1000 | 9000 | runtime | 2 CPU cores, x86_64 |\n"
        f"{what} files | DataLoader | 600 | 590 | 0.6 | 0.667 | 1200 |"
    ) in page
    assert "A text file of 10,000,000 paths: the first image is scored after about 3.5 s, the first part is " in page
    assert "there after 12.5 s; peak memory until some parts are, 640 MB." in page
    assert "## Speed of offline scoring" not in results_page({})


def test_tables_say_what_their_figures_were_measured_on() -> None:
    versions = {"python": "3.11.7", "torch": "2.13.0", "onnxruntime": "1.31.1"}
    new = BATCH | {
        "cpu_model": "Some CPU", "cpu_flags": ["avx2", "avx512_vnni"], "versions": versions, "date": "2026-11-26",
    }  # fmt: skip
    by = "by ONNX Runtime 1.31.1, torch 2.13.0, Python 3.11.7, 2026-11-26"

    one = results_page({"batch": {"a": new, "older": BATCH}})
    two = results_page({"batch": {"a": new, "b": new, "c": new | {"cpu_model": "Other CPU"}}})

    assert f"\n\nMeasured on 2 CPU cores, x86_64, Some CPU (avx2, avx512_vnni), {by}.\n" in one
    assert f"\n- `a`, `b`: on 2 CPU cores, x86_64, Some CPU (avx2, avx512_vnni), {by}.\n- `c`: on 2 CPU cores" in two


def test_what_scoring_does_to_a_server_is_shown() -> None:
    row = {"answers": 5800, "failed": 0, "p50_ms": 7.65, "p99_ms": 35.12, "scored_per_second": 67.8}
    record = {
        "bundle": "mnist-mda:1", "precision": "float32", "digest": "0" * 64, "offered_per_second": 391.4, "rounds": 3,
        "machine": "2 CPU cores, x86_64", "rows": {"beside score --nice": row},
    }  # fmt: skip

    page = results_page({"beside": {"mnist-mda:1": record}})

    assert "| `mnist-mda:1` † | 391.4 | beside score --nice | 7.65 | 35.12 | 0 | 67.8 | 2 CPU cores, x86_64 |" in page
    assert "## Offline scoring beside a server" not in results_page({})


def test_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="README must hold the marks"):
        with_table("# Discriminant\n", "| a |")


def test_readme_states_the_recorded_models() -> None:
    text = (ROOT / "README.md").read_text()

    assert text == with_table(text, models_table(RESULTS))
    assert text.count(START) == text.count(END) == 1


def test_page_of_results_is_that_of_the_recorded_figures() -> None:
    assert (ROOT / "docs" / "results.md").read_text() == results_page(RESULTS)


def test_recorded_models_are_recipes() -> None:
    assert RESULTS["models"]
    assert set(RESULTS["models"]) <= set(recipe_names())


@pytest.mark.parametrize("name", RESULTS["models"])
def test_epochs_of_a_recorded_model_are_kept(name: str) -> None:
    lines = (ROOT / "docs" / "metrics" / f"{name}.jsonl").read_text().splitlines()
    epochs, row = [json.loads(line) for line in lines], RESULTS["models"][name]

    assert [epoch["epoch"] for epoch in epochs] == list(range(1, row["epochs"] + 1))
    assert sum(epoch["seconds"] for epoch in epochs) == pytest.approx(row["seconds"], abs=0.1)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with runs of digits-softmax with the seeds 0, 1 and 2, and one of another recipe; read only."""
    root = tmp_path_factory.mktemp("project")
    project_in(root)
    for name, options in {
        "a": ["--seed", "0"], "b": ["--seed", "1"], "c": ["--seed", "2"], "d": ["--seed", "3", "--set", "fit.lr=0.1"],
    }.items():  # fmt: skip
        invoke(root, "train", "digits-softmax", "--epochs", "3", "--id", name, "--device", "cpu", *options)
    return root


def invoke(root: Path, *arguments: str) -> str:
    with contextlib.chdir(root):
        result = CliRunner().invoke(app, arguments)
    return str(result.exception or "")


def test_report_records_the_accuracy_of_every_seed(seeds: Path) -> None:
    runs = seeds / "runs" / "digits-softmax"
    others = ["--seed-run", str(runs / "b"), "--seed-run", str(runs / "c")]

    assert invoke(seeds, "report", str(runs / "a"), "--no-images", "--record", "--device", "cpu", *others) == ""

    row = load_results(seeds / "docs" / "results.json")["models"]["digits-softmax"]
    accuracies = []
    for seed, name in enumerate("abc"):
        images = load_images((run := Run.open(runs / name)).recipe, Sources())
        test = images.part("test", torch.device("cpu"))
        with torch.no_grad():
            said = (classifier := run.load_classifier()).calibrated(classifier(test.images).log_joints).argmax(1)
        accuracies.append((said == test.labels).double().mean().item())
        assert row["accuracy_of_seeds"][str(seed)] == pytest.approx(accuracies[-1], abs=1e-6)
    assert (seeds / "docs" / "metrics" / "digits-softmax.jsonl").read_bytes() == (
        runs / "a" / "metrics.jsonl"
    ).read_bytes()
    mean, sd = 100 * np.mean(accuracies), 100 * np.std(accuracies, ddof=1)
    readme = (seeds / "README.md").read_text()
    assert re.search(
        rf"\| {100 * accuracies[0]:.2f} % \[[\d.]+, [\d.]+\]; {mean:.2f} ± {sd:.2f}, 3 trainings \|", readme
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed-run", "b"], "--seed-run must come with --record, which writes its accuracy, got it without"),
        (["--record", "--seed-run", "a"], "--seed-run must have a seed of its own, got {runs}/a with seed 0"),
        (["--record", "--seed-run", "b", "--seed-run", "b"],
         "--seed-run must have a seed of its own, got {runs}/b with seed 1"),
        (["--record", "--seed-run", "d"],
         "--seed-run must be of the same recipe as {runs}/a but for the seed, got {runs}/d"),
    ],
)  # fmt: skip
def test_runs_that_are_no_other_seeds_are_refused(seeds: Path, arguments: list[str], message: str) -> None:
    runs = seeds / "runs" / "digits-softmax"
    places = [str(runs / text) if text in "abcd" else text for text in arguments]

    assert invoke(seeds, "report", str(runs / "a"), "--device", "cpu", *places) == message.format(runs=runs)


def test_recording_outside_the_project_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(app, ["study", "parameter-growth", "--record"])

    assert (
        str(result.exception) == f"--record must be given in the project's root, beside its README.md, got {tmp_path}"
    )
    assert not list(tmp_path.iterdir())
