"""The search for a server's capacity, against a real one with a tiny model; its table and its plot."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from load_tests.__main__ import app
from load_tests.capacity.command import question
from load_tests.capacity.shown import knee_in_words
from serving.bundle import Bundle
from training.capacity_plot import draw, plot_of, record_plots
from training.capacity_tables import capacity_section, knee_table, loops_table
from training.figures import save_svg

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


@pytest.fixture(scope="module")
def measured(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Result, Path]:
    """The command's file, what it printed, and its plot; objectives that also hold on a busy machine."""
    folder = tmp_path_factory.mktemp("capacity")
    out, plot = folder / "out.json", folder / "plot.svg"
    command = ["capacity", "--bundle", str(bundle_dir), "--slo-p99-ms", "1500", "--slo-goodput", "0.5"]
    command += ["--seconds", "1", "--rounds", "1", "--gap", "2", "--connections", "2"]
    ran = CliRunner().invoke(app, [*command, "--out", str(out), "--plot", str(plot)])
    assert ran.exit_code == 0, ran.output
    return json.loads(out.read_text()), ran, plot


@needs_wrk
def test_the_knee_of_a_real_server_is_a_rate_that_was_confirmed(
    measured: tuple[dict[str, Any], Result, Path], bundle_dir: Path
) -> None:
    document, ran, _ = measured

    (result,) = document["results"]
    at_knee = [run for run in result["tried"] if run["asked_per_second"] == result["knee_per_second"]]
    beyond = [run for run in result["tried"] if run["asked_per_second"] == result["breaks_at_per_second"]]
    held = sum(run["broken"] is None for run in at_knee)
    assert result["knee_runs"] == [len(at_knee), held]
    assert held >= 2
    assert sum(run["broken"] is not None for run in beyond) >= 2
    assert 1 < result["breaks_at_per_second"] / result["knee_per_second"] <= 2.01
    assert result["digest"] == Bundle.load(bundle_dir).manifest.sha256["model.onnx"]
    assert f"tiny-mda:1 float32 holds {result['knee_per_second']:g} requests/s" in " ".join(ran.output.split())


@needs_wrk
def test_each_rate_tried_is_kept_with_its_histogram_and_the_generators_cpu(
    measured: tuple[dict[str, Any], Result, Path],
) -> None:
    document, *_ = measured

    assert {"machine", "versions", "date", "command"} < set(document)
    for run in document["results"][0]["tried"]:
        answered = sum(run["histogram_ms"].values())
        assert answered + run["failed"] == pytest.approx(run["offered_per_second"] * 1)  # in one second
        assert run["generator_cpu"] > 0
        assert run["broken"] is None or run["broken"].startswith(("p99 must be", "goodput must be"))


@needs_wrk
def test_both_loops_stand_side_by_side_at_the_same_rate(measured: tuple[dict[str, Any], Result, Path]) -> None:
    document, *_ = measured

    (loops,) = document["results"][0]["loops"]
    half, knee = document["results"][0]["at"]
    assert loops["connections"] == 2
    assert 0 < loops["closed_p50_ms"] <= loops["closed_p99_ms"]
    assert loops["open_offered_per_second"] == pytest.approx(loops["answers_per_second"], rel=0.5)  # as it was drawn
    assert loops["rounds"]["closed_p99_ms"] == [loops["closed_p99_ms"]]
    assert (half["at"], knee["at"]) == ("half of the knee", "the knee")


@needs_wrk
def test_plot_is_of_what_was_tried(measured: tuple[dict[str, Any], Result, Path], tmp_path: Path) -> None:
    document, _, plot = measured

    again = save_svg(draw(document["results"]), tmp_path / "again.svg")

    assert again.read_bytes() == plot.read_bytes()
    (axes,) = draw(document["results"]).axes
    rates = sorted({run["asked_per_second"] for run in document["results"][0]["tried"] if run["p99_ms"] is not None})
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [rates, rates]


def test_an_answer_must_have_the_label_that_the_graph_gives(bundle_dir: Path, images: list[bytes]) -> None:
    asked = question(Bundle.load(bundle_dir), images[0], "float32")

    assert asked.path == "/predictions/tiny-mda"
    label = next(name for name in Bundle.load(bundle_dir).manifest.labels if asked.check(200, _answer(name)) is None)
    other = next(name for name in Bundle.load(bundle_dir).manifest.labels if name != label)
    assert asked.check(200, _answer(other)) == f"label must be {label}, got {other}"
    assert asked.check(503, b"busy") == "status must be 200, got 503: b'busy'"


def _answer(label: str) -> bytes:
    return json.dumps({"label": label}).encode()


@pytest.mark.parametrize("connections", ["0", "1,x", ""])
@needs_wrk
def test_connections_must_be_numbers(connections: str) -> None:
    ran = CliRunner().invoke(app, ["capacity", "--connections", connections])

    assert ran.exit_code == 1
    assert f"--connections must be numbers of at least 1, as 1,8,32, got {connections}" in ran.output


def record(precision: str, knee: float) -> dict[str, Any]:
    figures = {"p50_ms": 3.0, "p99_ms": 20.0, "generator_cpu": 0.04}
    loop = {"connections": 8, "answers_per_second": 600, "open_goodput_per_second": 590.5}
    latencies = {"closed_p50_ms": 12, "closed_p99_ms": 21, "open_p50_ms": 40, "open_p99_ms": None}
    tried = [{"asked_per_second": rate, "p50_ms": rate / 100, "p99_ms": rate / 10} for rate in (knee / 2, knee)]
    return {
        "bundle": "gone:1",
        "precision": precision,
        "image": "shape",
        "image_bytes": 106,
        "slo": {"p99_ms": 100.0, "goodput": 0.97},
        "seconds": 10,
        "knee_per_second": knee,
        "breaks_at_per_second": 1.05 * knee,
        "knee_runs": [3, 2],
        "tried": tried,
        "loops": [loop | latencies],
        "at": [{"at": "half of the knee", **figures}, {"at": "the knee", **figures, "p99_ms": 90.0}],
        "machine": "some",
    }


def test_section_is_there_once_there_is_a_record_and_shows_the_plot_of_each_bundle() -> None:
    results = {"capacity": {f"gone:1 {precision}": record(precision, 400) for precision in ("float32", "int8")}}

    section = capacity_section(results)

    assert capacity_section({}) == ()
    assert section[0] == "## Capacity"
    assert [part for part in section if part.startswith("![")] == [
        "![gone:1: latency against offered rate](plots/capacity-gone-1.svg)"
    ]
    assert knee_table(results).splitlines()[2] == (
        "| `gone:1` ‡ | float32 | 100 | 97 % | 400 | 420 | 3 | 90 | 3 | 20 | 0.04 | some |"
    )
    assert loops_table(results).splitlines()[2] == "| `gone:1` ‡ | float32 | 8 | 600 | 12 | 21 | 40 | none | 590.5 |"
    assert knee_in_words(results["capacity"]["gone:1 int8"]) == (
        "gone:1 int8 holds 400 requests/s (p99 at most 100 ms, at least 97% answered right) in 2 of 3 runs, "
        "and no longer 420"
    )


def test_plots_are_drawn_from_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = {f"gone:1 {precision}": record(precision, 400) for precision in ("float32", "int8")}

    record_plots({"capacity": records})

    assert plot_of("gone:1") == Path("docs/plots/capacity-gone-1.svg")
    assert plot_of("gone:1").read_bytes().startswith(b"<?xml")
