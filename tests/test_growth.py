"""How cost grows: ratios by hand, what is kept of a killed run, tables and plot, and two dimensions once, tiny."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from load_tests.growth import classes, command, connections, instances, models, pixels
from load_tests.growth.curve import Curve, Reading, Shape
from load_tests.growth.dimension import Setting, failed, known, on_cores, renamed
from load_tests.growth.kept import Kept
from load_tests.wrk import Load
from serving.bundle import Bundle
from serving.predictor import Predictor
from training import growth_plot
from training.growth_tables import bends, growth_table
from training.tables import results_page

ROOT = Path(__file__).resolve().parents[1]
RATE = Shape("answers", "connections", "answers/s", "none", is_rate=True)
MEMORY = Shape("memory", "models", "MB", "models")
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


def readings(shape: Shape, at: dict[float, list[float]], work: Callable[[float], float]) -> list[Reading]:
    return [Reading(shape.name, x, value, work(x)) for x, values in at.items() for value in values]


# Ratios


def test_cost_of_a_rate_is_the_time_of_one() -> None:
    curve = Curve.of(RATE, readings(RATE, {8: [400, 500, 450], 1: [100, 200, 150]}, lambda _: 1))

    assert [point.x for point in curve.points] == [1, 8]
    assert [point.ratio for point in curve.points] == pytest.approx([1, 150 / 450])
    assert [point.work_ratio for point in curve.points] == [1, 1]
    assert [point.bends_from for point in curve.points] == [None, None]


def test_memory_that_grows_as_the_models_do_bends_nowhere() -> None:
    curve = Curve.of(MEMORY, readings(MEMORY, {1: [300, 300], 4: [900, 910], 16: [4800, 4810]}, lambda models: models))

    assert [point.ratio for point in curve.points] == pytest.approx([1, 905 / 300, 4805 / 300])
    assert [point.work_ratio for point in curve.points] == [1, 4, 16]
    assert [point.excess for point in curve.points] == pytest.approx([1, 905 / 1200, 4805 / 4800])


def test_curve_bends_from_the_point_that_was_best_for_its_work() -> None:
    curve = Curve.of(RATE, readings(RATE, {1: [100] * 3, 8: [500] * 3, 32: [460] * 3, 512: [200] * 3}, lambda _: 1))

    assert [point.bends_from for point in curve.points] == [None, None, None, 8]  # 500 to 460 is less than a tenth


def test_curve_does_not_bend_where_a_round_says_otherwise() -> None:
    values = {1: [100, 100, 100], 4: [80, 80, 101]}

    assert Curve.of(RATE, readings(RATE, values, lambda _: 1)).points[1].bends_from is None


@pytest.mark.parametrize(("value", "work"), [(0, 1), (5, float("nan"))])
def test_reading_without_a_ratio_is_refused(value: float, work: float) -> None:
    with pytest.raises(ValueError, match=r"answers at 512 must be above 0, got .* 100 % of the requests failed: raise"):
        Reading("answers", 512, value, work, failed=1)


def test_curve_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="memory must have readings, got none"):
        Curve.of(MEMORY, [])


def test_failed_is_a_share_of_all_requests() -> None:
    assert failed(Load(75, 1, 1, failed=100), seconds=4) == 0.25
    assert failed(Load(0, 0, 0, failed=0), seconds=4) == 1


# What is measured


def test_copy_under_another_name_is_the_same_model(bundle_dir: Path, tmp_path: Path, images: list[bytes]) -> None:
    copy = Bundle.load(renamed(bundle_dir, "other", tmp_path))

    assert (copy.manifest.name, copy.manifest.version) == ("other", 1)
    assert copy.digest == Bundle.load(bundle_dir).digest
    labels, others = (
        [answer["label"] for answer in Predictor(one).predict(images) if isinstance(answer, dict)]
        for one in (copy, Bundle.load(bundle_dir))
    )
    assert labels == others


def test_untrained_bundles_differ_in_their_heads_alone(tmp_path: Path) -> None:
    few, many = (Bundle.load(classes.untrained(count, tmp_path, "linear")).manifest for count in (10, 30))

    assert (few.head.classes, many.head.classes) == (10, 30)
    assert few.head.dim == many.head.dim
    assert few.input == many.input


@pytest.mark.parametrize("draw", pixels.KINDS.values(), ids=("png", "jpeg"))
def test_images_of_all_sides_are_taken(bundle_dir: Path, draw: Callable[[int], bytes]) -> None:
    predictor = Predictor(Bundle.load(bundle_dir))

    answers = predictor.predict([draw(side) for side in pixels.SIDES])

    assert all(isinstance(answer, dict) for answer in answers)


def test_cores_are_given_back() -> None:
    mine = os.sched_getaffinity(0)

    with on_cores(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == mine
    beyond = len(mine) + 1
    with pytest.raises(ValueError, match=f"cores must be from 1 to {len(mine)}, got {beyond}"), on_cores(beyond):
        pass


# A run


def test_killed_run_goes_on_with_the_same_alone(tmp_path: Path) -> None:
    round_of = [Reading("memory", 1, 5.0, 1.0)]
    Kept(tmp_path, "models", {"seconds": 3}).add(round_of)

    assert Kept(tmp_path, "models", {"seconds": 3}).rounds == [round_of]
    assert Kept(tmp_path, "models", {"seconds": 4}).rounds == []
    Kept(tmp_path, "models", {"seconds": 3}).forget()
    assert Kept(tmp_path, "models", {"seconds": 3}).rounds == []


@needs_wrk
def test_command_measures_prints_and_draws(bundle_dir: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "growth.json", tmp_path / "kept"
    options = ("--bundle", bundle_dir, "--rounds", 1, "--seconds", 1, "--only", "instances", "--out", out)
    line = [sys.executable, "-m", "load_tests", "growth", *map(str, options), "--scratch", str(kept)]

    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    assert "It takes about" in done.stderr
    record = json.loads(out.read_text())["results"]["instances"]
    (curve,) = record["curves"]
    assert record["bundle"] == "tiny-mda:1"
    assert [point["x"] for point in curve["points"]] == [1, 8, 64, 256]
    assert [point["work_ratio"] for point in curve["points"]] == [1, 8, 64, 256]
    assert all(point["failed"] == 0 and len(point["rounds"]) == 1 for point in curve["points"])
    assert out.with_suffix(".svg").read_text().startswith("<?xml")
    assert list(kept.iterdir()) == []


@needs_wrk
def test_models_of_one_server_are_asked_alone_and_in_turn(bundle_dir: Path, tmp_path: Path) -> None:
    measured = models.measure(Setting(bundle_dir, 1, tmp_path), counts=(1, 2))

    found = next(measured)
    measured.close()

    assert {(one.curve, one.x) for one in found} == {
        (shape.name, count) for shape in models.DIMENSION.shapes for count in (1, 2)
    }
    assert all(one.failed == 0 for one in found)
    memory = {one.x: one.value for one in found if one.curve == models.MEMORY}
    assert 0 < memory[1] < memory[2]


@needs_wrk
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["colours"]}, "error: --only must be one of models, classes, pixels, .*, got 'colours'"),
        ({"bundle": Path("nowhere")}, "error: nowhere/bundle.json must exist"),
        ({"record": True}, "error: --record must be given in the project's root"),
    ],
)
def test_bad_options_are_refused_in_words(
    options: dict[str, Any], message: str, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit, match=message):
        command.main(**{"bundle": bundle_dir} | options)


def test_dimensions_keep_their_order() -> None:
    every = [connections.DIMENSION, instances.DIMENSION]

    assert [one.name for one in known(["instances", "connections"], every)] == ["connections", "instances"]
    assert known([], every) == every


# What is shown


@pytest.fixture
def records() -> dict[str, dict[str, Any]]:
    falls = Curve.of(RATE, readings(RATE, {1: [100] * 3, 8: [500] * 3, 512: [200] * 3}, lambda _: 1))
    record = {"bundle": "gone:1", "precision": "float32", "machine": "some", "curves": [falls.as_record()]}
    record["curves"][0]["points"][-1]["failed"] = 0.25
    return {"connections": record}


def test_bend_is_said_against_the_best_point_and_so_is_what_failed(records: dict[str, dict[str, Any]]) -> None:
    records["connections"]["curves"][0]["points"][1]["failed"] = 0.1

    assert bends(records) == [
        "connections, answers: 8 connections, 10 % of the requests failed",
        "connections, answers: 512 connections, 0.4 times the answers/s at 8, where the work alone would make it 1; "
        "25 % of the requests failed",
    ]


def test_table_marks_what_bends(records: dict[str, dict[str, Any]]) -> None:
    (row,) = (line for line in growth_table({"growth": records}).splitlines() if line.startswith("| `"))

    assert row.split(" | ")[2:8] == [
        "1 · 8 · 512 connections",
        "100 · 500 · 200 answers/s",
        "1 · 0.2 · 0.5",
        "1 · 1 · 1",
        "1 · 0.2 · **0.5**",
        "0 · 0 · 25",
    ]


def test_page_has_the_section_once_there_are_records(records: dict[str, dict[str, Any]]) -> None:
    assert "## Growth" not in results_page({})
    assert "](plots/growth-curves.svg)" in results_page({"growth": records})


def test_same_records_draw_the_same_bytes(records: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    first, second = (growth_plot.write(records, tmp_path / name).read_bytes() for name in ("one.svg", "two.svg"))

    assert first == second
