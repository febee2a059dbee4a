"""What the comparison of two files calls a change, on files made by hand."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from load_tests.__main__ import app
from load_tests.compare.changes import judge, more_is_better
from load_tests.compare.command import Incomparable, compare, kind_of, warnings
from load_tests.compare.measured import Figure, figures
from load_tests.rounds import median_row

ROOT = Path(__file__).resolve().parents[1]


def row(connections: int, p99_ms: list[float], rate: list[float]) -> dict[str, Any]:
    return median_row(
        [
            {"connections": connections, "answers_per_second": per_second, "p99_ms": latency, "failed": 0}
            for latency, per_second in zip(p99_ms, rate, strict=True)
        ]
    )


def serve(*rows: dict[str, Any], machine: str = "2 CPU cores") -> dict[str, Any]:
    result = {"bundle": "some:1", "precision": "int8", "digest": "ab", "rounds": 3, "rows": list(rows)}
    return {"machine": machine, "versions": {"python": "3.11"}, "command": "serve", "results": [result]}


OLD = serve(row(8, [20, 21, 22], [600, 610, 620]), row(32, [60, 66, 72], [700, 710, 740]))


def verdicts(old: dict[str, Any], new: dict[str, Any], **options: float) -> dict[str, str]:
    """By row and figure, without those that are the same."""
    found = compare(old, new, **options)
    return {" ".join(change.path[-2:]): change.verdict for change in found if change.verdict != "same"}


def test_a_file_has_not_changed_from_itself() -> None:
    assert verdicts(OLD, copy.deepcopy(OLD)) == {}
    assert len(compare(OLD, OLD)) == 6  # three of each row: how many are asked at once is no figure


def test_rows_are_matched_by_what_they_are_of_and_judged_by_the_spread_of_their_rounds() -> None:
    new = serve(row(32, [62, 69, 75], [690, 700, 730]), row(8, [40, 41, 42], [900, 910, 920]))

    assert verdicts(OLD, new) == {
        "connections 8 p99_ms": "worse",
        "connections 8 answers_per_second": "better",
    }


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ([100, 101, 102], [103, 104, 105], "same"),  # runs differ by so much whatever their rounds say
        ([100, 101, 102], [110, 111, 112], "worse"),
        ([100, 101, 102], [90, 91, 92], "better"),
        ([90, 100, 110], [105, 115, 125], "same"),  # within the widths
        ([80, 100, 120], [125, 130, 150], "same"),  # apart, but three rounds that lie so wide can be
        ([80, 90, 100, 110, 120], [125, 130, 140, 150, 160], "worse"),  # of five they seldom are
        ([100, 100], [109, 109], "same"),  # two rounds tell nothing of noise: the stated share
        ([100, 100], [112, 112], "worse"),
        ([0, 0, 0], [0, 0, 0], "same"),
        ([0, 0, 0], [4, 5, 6], "worse"),
    ],
)
def test_rounds_decide(old: list[float], new: list[float], verdict: str) -> None:
    before, after = (Figure(float(np.median(rounds)), tuple(rounds)) for rounds in (old, new))

    assert judge(("p99_ms",), before, after, 0.1).verdict == verdict


@pytest.mark.parametrize("rounds", [3, 5])
def test_what_has_not_changed_is_seldom_called_changed(rounds: int) -> None:
    random = np.random.default_rng(rounds)
    runs = random.normal(100, 10, (2000, 2, rounds))

    called = sum(
        judge(("p99_ms",), *(Figure(float(np.median(run)), tuple(run)) for run in pair), 0.1).verdict != "same"
        for pair in runs
    )

    assert called / len(runs) < 0.025


def test_without_rounds_a_stated_share_is_noise() -> None:
    old, new = {"command": "x", "p50_ms": 10.0, "peak_mb": 100}, {"command": "x", "p50_ms": 11.5, "peak_mb": 105}

    assert verdicts(old, new) == {"p50_ms": "worse"}
    assert verdicts(old, new, share=0.2) == {}
    assert verdicts(new, old) == {"p50_ms": "better"}


def test_an_interval_that_the_file_states_is_noise() -> None:
    def model(nll: float) -> dict[str, Any]:
        return {"models": {"some": {"after": {"nll": nll, "intervals": {"nll": [nll - 0.1, nll + 0.1]}}}}}

    assert verdicts(model(1.0), model(1.15)) == {}
    assert verdicts(model(1.0), model(1.25)) == {"after nll": "worse"}


def test_rounds_around_the_medians_and_of_one_median_are_found() -> None:
    around = {"rows": {"peer": {"rounds": [{"closed": {"8": {"p99_ms": at}}} for at in (8, 9, 12)]}}}
    around["rows"]["peer"]["closed"] = {"8": {"p99_ms": 9}}  # type: ignore[assignment]
    point = {"x": 4, "median": 9, "rounds": [8, 9, 12]}
    curves = {"curves": [{"name": "answers/s", "is_rate": True, "points": [point]}]}

    assert figures(around)["rows", "peer", "closed", "8", "p99_ms"] == Figure(9, (8, 9, 12))
    curve = figures(curves)["curves", "answers/s", "points", "x 4", "median"]
    assert curve == Figure(9, (8, 9, 12), more_is_better=True)


def test_rows_that_cannot_be_told_apart_are_matched_by_place() -> None:
    found = figures({"rows": [{"p99_ms": 1}, {"p99_ms": 2}]})

    assert {path[1]: figure.value for path, figure in found.items()} == {"row": 1, "row (2)": 2}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("p99_ms", False),
        ("open_p50_ms", False),
        ("peak_mb", False),
        ("memory_mb", False),
        ("seconds_to_ready", False),
        ("failed", False),
        ("open_overdue", False),
        ("answers_per_second", True),
        ("knee_per_second", True),
        ("goodput_per_second", True),
        ("ratio", True),
        ("accuracy", True),
        ("offered_per_second", None),  # what was asked for is no merit
        ("breaks_at_per_second", None),
        ("generator_cpu", None),
        ("generator_late_ms", None),
        ("threads", None),
    ],
)
def test_which_way_is_better_is_known_by_the_name(name: str, expected: bool | None) -> None:
    assert more_is_better((name,), Figure(1)) is expected


def test_files_of_different_commands_are_refused() -> None:
    other = OLD | {"command": "capacity"}

    with pytest.raises(Incomparable, match=r"^both files must be of the same command, got serve and capacity$"):
        compare(OLD, other)
    with pytest.raises(Incomparable, match=r"got docs/results.json and serve$"):
        compare({"serving": {"some:1": {}}}, OLD)
    unsaid = {key: value for key, value in OLD.items() if key != "command"}
    assert kind_of(unsaid) == "a file with results"


def test_files_without_a_figure_in_common_are_refused() -> None:
    new = serve(row(64, [1, 1, 1], [1, 1, 1]))

    with pytest.raises(Incomparable, match=r"^both files must have figures of the same things, got none in common$"):
        compare(OLD, new)


def test_another_machine_and_another_bundle_are_warned_of() -> None:
    new = serve(*OLD["results"][0]["rows"], machine="8 CPU cores")
    new["results"][0]["digest"] = "cd"

    assert warnings(OLD, OLD) == []
    assert warnings(OLD, new) == [
        "machine differs: 2 CPU cores before, 8 CPU cores after",
        "digest differs of results / some:1, int8: another recipe, bundle or parameters",
    ]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_the_command_says_what_got_worse_and_its_exit_code_does(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(OLD))
    new.write_text(json.dumps(serve(row(8, [40, 41, 42], [600, 610, 620]), machine="8 CPU cores")))

    said, failed, backwards = (
        command(*arguments) for arguments in ((old, new), (old, new, "--fail-if-worse"), (new, old, "--fail-if-worse"))
    )

    assert (said.exit_code, failed.exit_code, backwards.exit_code) == (0, 1, 0)
    assert said.stderr == "warning: machine differs: 2 CPU cores before, 8 CPU cores after\n"
    first, second, last = said.stdout.splitlines()
    assert first == "results / some:1, int8 / rows / connections 8"
    assert second.split() == ["p99_ms", "21", "→", "41", "+95.2%", "(noise", "9.8%)", "worse"]
    assert last == "3 figures: 1 worse, 0 better, 2 within noise, 0 otherwise; besides 3 only before, 0 only after"


def test_the_command_refuses_what_it_cannot_compare(tmp_path: Path) -> None:
    old, broken = tmp_path / "old.json", tmp_path / "broken.json"
    old.write_text(json.dumps(OLD))
    broken.write_text("{")

    other, unread = command(old, ROOT / "docs" / "results.json"), command(old, broken)

    assert (other.exit_code, unread.exit_code) == (2, 2)
    assert other.stderr == "error: both files must be of the same command, got serve and docs/results.json\n"
    assert unread.stderr.startswith(f"error: {broken} must be a JSON file, got ")


def test_the_projects_results_can_be_compared() -> None:
    results = json.loads((ROOT / "docs" / "results.json").read_text())
    worse = copy.deepcopy(results)
    name, record = next(iter(worse["serving"].items()))
    record["rows"][0]["p50_ms"] *= 2

    assert {change.verdict for change in compare(results, results)} == {"same"}
    assert [(change.path[:2], change.verdict) for change in compare(results, worse) if change.verdict != "same"] == [
        (("serving", name), "worse")
    ]
