"""The report of a run: what it says, what it leaves out, and how a real browser shows it."""

import base64
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, seen_in_browser
from training_samples import FOLDER_DATA, begun, digits, small_recipe, write_digit_folder

from training.__main__ import main
from training.analysis import ood
from training.analysis.abstention import typicality_figures
from training.analysis.diagnostics import reliability
from training.analysis.evidence import gather
from training.calibrate import FoundTemperature
from training.data import Dataset, Sources
from training.datasets import DATASETS
from training.devices import PrecisionChoice, describe_device
from training.digests import temperature_digest
from training.evaluate import eager, measure, run_graph
from training.recipe import Recipe
from training.report.abstention_section import abstention_section
from training.report.components_section import component_calibration
from training.report.galleries import component_members
from training.report.sections import calibration_section
from training.report.write import write_report
from training.run import Run, RunError
from training.train import train

CPU = torch.device("cpu")
NAMES = {"0": "<b>0", "1": "1 & one"}  # class folders
REFIT = {"dim": 4, "components": 2, "ridge": 0.01}
MEASURED = ("images", "accuracy", "nll", "brier", "ece", "ece_equal_mass", "aurc", "e_aurc")
IMAGES_OF_THE_DATA = {"components.png", "confused-images.png", "close-classes.png"}


@pytest.fixture(scope="module", autouse=True)
def fewer_drawn() -> Iterator[None]:
    """Drawing 200 pages of text for every report takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ood, "DRAWN_IMAGES", 20)
        yield


def finished(folder: Path, recipe: Recipe, sources: Sources, name: str = "small") -> Run:
    run = Run.create(name, recipe, "first", folder)
    train(run, sources, CPU)
    return run


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A folder of three classes whose names are dangerous in HTML."""
    folder = write_digit_folder(tmp_path_factory.mktemp("data") / "digits")
    for name, new in NAMES.items():
        (folder / name).rename(folder / new)
    return Sources(folder=folder)


@pytest.fixture(scope="module")
def run(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A mixture of two components a class, calibrated; read only."""
    own = temperature_digest(small_recipe(data=FOLDER_DATA, refit=REFIT))
    recipe = small_recipe(data=FOLDER_DATA, refit=REFIT, calibration={"temperature": 2.5, "found_for": own})
    return finished(tmp_path_factory.mktemp("runs"), recipe, sources)


@pytest.fixture(scope="module")
def page(run: Run, sources: Sources) -> Path:
    """Its report, with images; read only."""
    return write_report(run, sources)


def figures_of(page: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((page.parent / "report.json").read_text())
    return figures


class Outline(HTMLParser):
    """Headings, links, pictures and every address of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids |= {found["id"] or ""} if "id" in found else set()
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action")]
        if tag == "img":
            self.alts.append(found.get("alt") or "")

    def handle_data(self, data: str) -> None:
        self.words += data


def test_page_needs_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    outline = Outline(text)

    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    assert not re.search(r"url\(|@import|<script|<iframe|https?://", text)
    assert {address[1:] for address in outline.addresses if address.startswith("#")} <= outline.ids
    assert outline.tags.count("h1") == 1
    assert outline.tags.count("h2") == outline.tags.count("section") == 9
    assert len(outline.alts) == outline.tags.count("img") > 9
    assert all(len(alt) > 10 for alt in outline.alts)


def test_names_of_classes_are_text(page: Path) -> None:
    assert "<b>0" not in page.read_text()
    assert all(name in Outline(page.read_text()).words for name in NAMES.values())


def test_pictures_in_the_page_are_the_files_beside_it(page: Path) -> None:
    uris = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text())

    files = {file.read_bytes() for file in page.parent.glob("*.png")}

    assert {base64.b64decode(uri) for uri in uris} == files
    assert IMAGES_OF_THE_DATA - {"confused-images.png"} <= {file.name for file in page.parent.glob("*.png")}


def test_page_says_what_was_trained_and_how_good_it_is(page: Path, run: Run) -> None:
    words, figures = Outline(page.read_text()).words, figures_of(page)
    after = figures["calibration"]["after"]

    assert "small / first" in words
    assert f"{after['accuracy']:.2%}" in words
    assert f"{after['nll']:.4f}" in words
    assert f"temperature{run.load_classifier().temperature:.4g}" in re.sub(r"\s", "", words)
    assert f"torch {torch.__version__}" in words
    assert "CPU, " in words
    assert "2 epochs in " in words
    assert 'kind = "six-conv"' in words
    assert f"AURC {after['aurc']:.4f}, E-AURC {after['e_aurc']:.4f}." in words
    assert "No images were held out" in words
    assert "noise (far, 20)" in words


def test_page_says_when_a_run_was_begun_and_resumed(run: Run, sources: Sources, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "small" / "resumed")
    resumed = Run.open(tmp_path / "small" / "resumed")
    begun_as = {"started": "1999-12-31T23:59:59+00:00", "device": "a slide rule", "epochs_from": "/runs/small/first",
                "taken_over": {"started": "2000-01-01T00:00:00+00:00", "device": "an abacus"}}  # fmt: skip
    (resumed.path / "run.json").write_text(json.dumps(resumed.description() | begun_as))
    resumed.resume(sources, CPU, PrecisionChoice("bfloat16", "this CPU has AMX"))

    page = write_report(resumed, sources, images=False, sample=50)

    at, facts = resumed.description()["resumed"][0]["at"], figures_of(page)["run"]
    history = (
        f"2 epochs in {facts['seconds']:,.1f} s of the run small/first; "
        "begun 1999-12-31T23:59:59+00:00 on a slide rule in float32; "
        "taken over 2000-01-01T00:00:00+00:00 on an abacus; "
        f"resumed {at} after epoch 2 on {describe_device(CPU)} in bfloat16"
    )
    assert history in Outline(page.read_text()).words


def test_page_says_what_images_there_are_more_than_once(page: Path, run: Run, sources: Sources, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "small" / "copies")
    description = run.description()
    description["duplicates"] |= {"copies": 4, "first_alike": [["<i>.png", "b.png"]], "alike": {"test": 1}}
    (tmp_path / "small" / "copies" / "run.json").write_text(json.dumps(description))

    copies = write_report(Run.open(tmp_path / "small" / "copies"), sources, images=False, sample=50)

    assert "duplicatesnonefound" in re.sub(r"\s", "", Outline(page.read_text()).words)
    assert figures_of(copies)["run"]["duplicates"] == description["duplicates"]
    assert (
        "4 images have the pixels of an earlier one; all copies of one are in one split; "
        "1 test images look like one of another split: <i>.png ~ b.png"
    ) in " ".join(Outline(copies.read_text()).words.split())


def test_figures_are_those_of_the_served_graph(page: Path, run: Run, sources: Sources) -> None:
    from training.images import load_images

    test = load_images(run.recipe, sources).part("test", CPU)
    expected = measure(run_graph(eager(run.load_classifier(), CPU), test.images), test.labels)

    figures = figures_of(page)

    after = figures["calibration"]["after"]
    assert {key: after[key] for key in MEASURED} == pytest.approx({key: expected[key] for key in MEASURED}, abs=1e-5)
    assert figures["components"]["test"]["occupancy"] == expected["occupancy"]
    assert figures["log_density"] == pytest.approx(expected["log_density"], abs=1e-3)
    assert sum(figures["class_accuracy"]) / 3 == pytest.approx(expected["accuracy"], abs=1e-5)  # classes of one size
    assert figures["run"]["splits"] == {"train": 72, "validation": 18, "test": 30}


def test_calibration_before_is_that_at_temperature_one(page: Path, run: Run, sources: Sources) -> None:
    from training.images import load_images

    test = load_images(run.recipe, sources).part("test", CPU)
    classifier = run.load_classifier()
    log_joints = classifier(test.images).log_joints.detach()
    nll = torch.nn.functional.cross_entropy(log_joints, test.labels).item()

    calibration = figures_of(page)["calibration"]

    assert classifier.temperature != 1
    assert calibration["temperature"] == classifier.temperature
    assert calibration["before"]["nll"] == pytest.approx(nll, rel=1e-4)
    assert calibration["before"]["accuracy"] == calibration["after"]["accuracy"]


def test_page_says_how_the_temperature_was_come_by_and_both_calibration_errors(page: Path) -> None:
    words, calibration = Outline(page.read_text()).words, figures_of(page)["calibration"]

    assert calibration["why"] == "named by the recipe"
    assert "T = 2.5: named by the recipe." in words
    for name in ("before", "after"):
        measured, ends = calibration[name], calibration[name]["intervals"]
        cells = [
            f"{measured[key]:.2%}[{100 * ends[key][0]:.2f},{100 * ends[key][1]:.2f}]"
            for key in ("accuracy", "ece", "ece_equal_mass")
        ]
        assert all(ends[key][0] <= measured[key] <= ends[key][1] for key in ends)
        assert cells[0] in re.sub(r"\s", "", words)
        assert cells[1] + cells[2] in re.sub(r"\s", "", words)
        assert f"NLL {measured['nll']:.4f} and ECE {measured['ece']:.2%}" in page.read_text()


def test_section_says_why_the_temperature_stayed_at_one() -> None:
    found = FoundTemperature(fitted=0.71234, images=450, nll_at_one=0.0184, nll_cross_fitted=0.0201)
    bins = {"nll": 0.06, "ece": 0.01, "reliability": reliability(np.array([[0.9, 0.1]]), np.array([0]))}

    section = calibration_section(
        {"calibration": {"temperature": 1.0, "served_at": None, "why": found.why, "before": bins, "after": bins}}
    )

    assert section.text[1] == (
        "T = 1: 0.7123, fitted on 450 held-out images, does not help: over 5 folds, the NLL of images it was not "
        "fitted to goes from 0.0184 to 0.0201 nats."
    )
    assert len(section.text) == 2


@pytest.mark.parametrize(("nll", "ece", "said"), [(0.05, 0.02, True), (0.05, 0.005, False), (0.07, 0.02, False)])
def test_section_explains_an_ece_that_rises_while_the_nll_falls(nll: float, ece: float, said: bool) -> None:
    bins = {"nll": 0.06, "ece": 0.01, "reliability": reliability(np.array([[0.9, 0.1]]), np.array([0]))}

    calibration = {"temperature": 2.0, "served_at": "T = 2", "before": bins, "after": {**bins, "nll": nll, "ece": ece}}

    section = calibration_section({"calibration": calibration})

    assert (
        any(text.startswith("The NLL falls and the ECE rises: T is fitted to the NLL") for text in section.text) == said
    )


@pytest.mark.parametrize(
    ("groups", "where"),
    [
        (1, "over all images of this kind, not over those of each class"),
        (2, "for the images of each of 2 groups of classes that are alike"),
        (3, "for the images of each class by itself"),
    ],
)
def test_section_says_for_whom_the_coverage_holds_and_what_it_is(groups: int, where: str) -> None:
    found = {
        "images": 400, "coverage": 0.9125, "mean_size": 1.5,
        "classes": {"least": 0.8, "mean": 0.91, "worst": [{"class": 2, "images": 40, "coverage": 0.8}]},
        "sizes": [{"labels": 1, "images": 300, "coverage": 0.95}, {"labels": 6, "images": 60, "coverage": 0.75},
                  {"labels": 7, "images": 40, "coverage": 1.0}],
    }  # fmt: skip
    figures = {
        "images": 400, "error": 0.1, "aurc": 0.02, "e_aurc": 0.01, "best_aurc": 0.01,
        "curve": {"coverage": [0.5, 1.0], "risk": [0.05, 0.1]}, "at": {"0.5": 0.05, "1.0": 0.1},
        "sets": {"0.9": found, "0.99": None}, "groups": groups,
        "typicality": typicality_figures(np.arange(1, 401) / 401, 400),
    }  # fmt: skip

    section = abstention_section(figures, ("a", "b", "c"))

    assert f"That share holds {where}; the sets of one size may miss it." in section.text[1]
    assert section.text[1].endswith("Too few images were held out for a coverage of 99%.")
    assert re.search(r" 1\.00% \[[\d., ]+\] are below 1% and 5\.00% \[[\d., ]+\] are below 5%; ", section.text[2])
    risk, sets, sizes = section.tables
    assert risk.rows == [["error among them", "5.00%", "10.00%"]]
    assert sets.rows == [["90%", "91.25%", "1.50", "91.00%", "80.0% (c, 40 images)"]]
    assert sizes.rows == [["1 label", "300", "95.0%"], ["more than 5 labels", "100", "85.0%"]]


def test_page_without_images_shows_none_of_the_data(run: Run, sources: Sources, tmp_path: Path) -> None:
    page = write_report(run, sources, tmp_path / "public", images=False)

    files = {file.name for file in page.parent.iterdir()}
    assert not files & IMAGES_OF_THE_DATA
    assert {"index.html", "report.json", "confusion.png", "plane.png", "occupancy.png"} <= files
    assert str(tmp_path) not in page.read_text() + (page.parent / "report.json").read_text()


def test_linear_models_show_their_templates(tmp_path: Path) -> None:
    recipe = small_recipe(encoder={"kind": "linear", "dim": 5}, head={"kind": "softmax"})

    page = write_report(finished(tmp_path, recipe, Sources()), Sources(), sample=500)

    figures = figures_of(page)
    assert (page.parent / "templates.png").is_file()
    assert figures["components"] is None
    assert figures["log_density"] is None
    assert "What the components are" not in page.read_text()
    assert "not calibrated, T = 1" in page.read_text()


def test_strangers_and_a_collapse_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head trained by gradient, on digits that pass for MNIST's; the strangers are their negatives."""

    def negatives(*_: object) -> Dataset:
        return replace(digits(), images=255 - digits().images, test_start=5000)

    recipe = small_recipe(head={"kind": "mda", "components": 2}, loss={"kind": "em-dnll", "weight": 0.1})
    run = finished(tmp_path, recipe, Sources())
    monkeypatch.setattr(ood, "load_dataset", negatives)
    monkeypatch.setitem(DATASETS, "digits", DATASETS["digits"]._replace(near=("mnist",)))

    page = write_report(run, Sources(), sample=800)

    words, figures = Outline(page.read_text()).words, figures_of(page)
    assert figures["ood"]["sets"]["mnist"]["images"] == 620
    for kind in ("near", "far"):
        for score in ("log_density", "energy", "vim", "knn"):
            assert f"{figures['ood']['means'][kind][score]['auroc']:.2%}" in words
    assert "mnist (near, 620)" in words
    assert f"an accuracy of {figures['components']['refit']['accuracy']:.2%} instead of" in " ".join(words.split())


def test_components_are_said_to_be_repeatable_and_stable_by_their_names(page: Path) -> None:
    words, components = " ".join(Outline(page.read_text()).words.split()), figures_of(page)["components"]
    starts, samples, bic = components["repeatability"], components["stability"], components["bic"]

    assert f"repeatability over 3 starts of the EM {starts['adjusted_rand']:.2f}, " in words
    assert f"stability over 5 bootstrap samples of the images {samples['adjusted_rand']:.2f}." in words
    end = f" or more a class; {bic['components'][-1]} are the most that were tried."
    assert (end in words) == (bic["least"] == bic["components"][-1])


def test_components_without_images_are_counted_and_left_out(run: Run, sources: Sources) -> None:
    evidence = gather(run, sources, CPU)
    head = evidence.classifier.head
    with torch.no_grad():
        head.weight_logits[0, 0] = -1e4  # nothing belongs to component 0 of the first class

    picture = component_members(evidence)

    names = [text.get_text() for text in picture.figure.axes[0].texts]
    assert "Left out: 1 components that have none." in picture.caption
    assert [name for name in names if name.startswith("1 & one")] == ["1 & one · comp. 1 · 100%"]
    assert sum("comp." in name for name in names) == 5


def test_galleries_call_components_by_their_names(run: Run, sources: Sources) -> None:
    picture = component_members(gather(run, sources, CPU), {"1 & one": {1: "with serifs"}, "4": {0: "open"}})

    names = [text.get_text() for text in picture.figure.axes[0].texts]
    assert sum(name.startswith("1 & one · with serifs · ") for name in names) == 1
    assert sum(name.startswith("4 · open · ") for name in names) == 1
    assert sum("comp." in name for name in names) == len(names) - 4  # two captions above the groups of images


def test_probability_of_components_is_explained_where_it_was_calibrated() -> None:
    quality = {"nll": 0.5, "ece": 0.08, "ece_equal_mass": 0.07, "sure": 0.6}
    calibration = {"temperature": 3.21, "why": "fitted", "before": quality, "after": quality | {"sure": 0.1}}

    text = component_calibration(calibration)

    assert "would put the image into it too, at T = 3.21: fitted. At T = 1 it is above 0.999 for 60%" in text
    assert text.endswith("for 60% of these images, as served for 10%.")
    assert component_calibration({"temperature": 2.0, "why": "named"}).endswith("at T = 2: named.")


def test_components_are_named_where_someone_has_looked(run: Run, sources: Sources, tmp_path: Path) -> None:
    names = tmp_path / "names.toml"
    names.write_text('["1 & one"]\n1 = "with <i>serifs</i>"\n', encoding="utf-8")

    page = write_report(run, sources, tmp_path / "report", images=False, names=names)

    text = page.read_text()
    assert '<th scope="row">1 &amp; one</th><td></td><td>with &lt;i&gt;serifs&lt;/i&gt;</td>' in text
    assert figures_of(page)["component_names"] == {"1 & one": {"1": "with <i>serifs</i>"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sandal]\n0 = 'flat'", "must name classes of {run}, 1 & one, 4, <b>0, got 'sandal'"),
        ("[4]\n2 = 'round'", "must name components below 2, got 2 of 4"),
        ("[4]\n-1 = 'round'", "must name components below 2, got -1 of 4"),
        ("[4]\n1 = 7", 'must be TOML with a table a class of lines such as 0 = "flat", got 1 validation error'),
        ("2 = 'round'", 'must be TOML with a table a class of lines such as 0 = "flat", got 1 validation error'),
        ("[2", "must be TOML with a table a class of lines such as 0 = \"flat\", got Expected ']'"),
    ],
)
def test_wrong_names_are_refused(run: Run, sources: Sources, tmp_path: Path, text: str, message: str) -> None:
    names = tmp_path / "names.toml"
    names.write_text(text, encoding="utf-8")

    with pytest.raises(ValueError, match=f"^{re.escape(f'{names} ' + message.format(run=run.path))}"):
        write_report(run, sources, tmp_path / "report", names=names)
    assert not (tmp_path / "report").exists()


def test_report_in_the_way_is_replaced_and_anything_else_is_kept(run: Run, sources: Sources, tmp_path: Path) -> None:
    write_report(run, sources, tmp_path / "report", images=False)
    (tmp_path / "report" / "stale.png").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()

    write_report(run, sources, tmp_path / "report", images=False)

    assert not (tmp_path / "report" / "stale.png").exists()
    with pytest.raises(
        ValueError, match=r"^out must be a new or empty folder or a report, got .*mine, which holds something else$"
    ):
        write_report(run, sources, tmp_path / "mine")
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["mine", "report"]


def test_failed_report_leaves_the_old_one(
    run: Run, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write_report(run, sources, tmp_path / "report", images=False)
    before = page.read_bytes()
    monkeypatch.setattr("training.report.page.TEMPLATE", tmp_path / "report.html.jinja")

    with pytest.raises(Exception, match=r"report.html.jinja"):
        write_report(run, sources, tmp_path / "report", images=False)

    assert page.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report"]


def test_other_images_are_refused(run: Run, tmp_path: Path) -> None:
    others = write_digit_folder(tmp_path / "others", "235")

    with pytest.raises(RunError, match=r"^images must be those that .* was trained on"):
        write_report(run, Sources(folder=others))


def test_command_says_where_the_page_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["training", "report", str(run.path), "--out", str(out), "--device", "cpu"])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code in (0, None)
    assert capsys.readouterr().out.endswith(f"report: open {out / 'index.html'}\n")
    assert (out / "close-classes.png").is_file()


def test_unfinished_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(Run.create("small", small_recipe(), "unfinished", tmp_path))
    monkeypatch.setattr(sys, "argv", ["training", "report", str(run.path)])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: run must be finished, got ")


# A real browser


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")
@pytest.mark.parametrize("width", [400, 1280])
def test_browser_shows_every_picture_and_scrolls_in_one_direction_only(page: Path, width: int, tmp_path: Path) -> None:
    seen = seen_in_browser(page, width, tmp_path)

    assert seen["width"] <= width
    assert seen["scroll"] <= seen["width"]
    assert seen["over"] == 0
    assert len(seen["widths"]) == Outline(page.read_text()).tags.count("img")
    assert np.min(seen["widths"]) > 0
    assert seen["fetched"] == []
