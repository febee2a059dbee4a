"""The command line, run as a user runs it."""

import json
import re
import socket
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import encoded, gmm_answers, serving
from PIL import Image

from load_tests import bench_serve
from serving.answer_table import print_answers
from serving.parameters import Options
from serving.predictor import Predictor
from serving.torchserve.archive import package
from serving.torchserve.state import Server

COMMANDS = ["package", "start", "stop", "status", "deploy", "rollback", "classify", "score"]


@pytest.fixture
def files(images: list[bytes], tmp_path: Path) -> list[Path]:
    """Two good images and a broken one."""
    paths = [tmp_path / name for name in ("one.png", "two.png", "broken.png")]
    for path, data in zip(paths, [images[0], images[1], images[2][:60]], strict=True):
        path.write_bytes(data)
    return paths


def test_help_lists_the_commands_and_describes_each_option() -> None:
    overview = serving("--help", check=True).stdout
    for command in COMMANDS:
        assert command in overview
    start = serving("start", "--help", check=True).stdout
    for option in ("--models", "--device", "--port", "--host", "--foreground", "--state", "--timeout"):
        assert option in start


def test_the_benchmark_takes_several_precisions() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(bench_serve.main)
    command = typer.main.get_command(app)

    context = command.make_context("serve", ["--precision", "float32", "--precision", "int8", "--device", "gpu"])
    assert [choice.value for choice in context.params["precision"]] == ["float32", "int8"]


def test_package_says_what_it_made(bundle_dir: Path, softmax_dir: Path, tmp_path: Path) -> None:
    result = serving("package", bundle_dir, softmax_dir, "--model-store", tmp_path, check=True)

    assert result.stdout.splitlines()[0] == f"Packaged {bundle_dir} as {tmp_path / 'tiny-mda-1.mar'} (0.0 MB)"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-mda-1.mar", "tiny-softmax-1.mar"]


def test_a_refusal_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    result = serving("package", tmp_path / "[nothing]", "--model-store", tmp_path)

    assert result.returncode == 1
    assert result.stderr == (
        f"error: {tmp_path}/[nothing]/bundle.json must exist: "
        "a bundle is a folder <name>/<version> that holds bundle.json\n"
    )


def test_without_a_server(tmp_path: Path, files: list[Path]) -> None:
    status = serving("status", "--state", tmp_path)
    stop = serving("stop", "--state", tmp_path)
    no_model = serving("classify", files[0], "--state", tmp_path)
    no_server = serving("classify", files[0], "--state", tmp_path, "--model", "x", "--url", "http://127.0.0.1:1")

    assert (status.returncode, status.stdout) == (3, f"No server runs in {tmp_path}.\n")
    assert (stop.returncode, stop.stdout) == (0, f"No server runs in {tmp_path}.\n")
    assert no_model.stderr == "error: --model must be given where no server was started here, got none\n"
    message = "error: no server at http://127.0.0.1:1: start one with `python -m serving start`\n"
    assert (no_server.returncode, no_server.stderr) == (1, message)


def test_status_shows_every_model(server: Server, state: Path) -> None:
    result = serving("status", "--state", state)

    assert result.returncode == 0
    for name in server.models:
        assert name in result.stdout
    assert result.stdout.count("1/1") == 4
    lacking = (
        "Without held-out images: tiny-mda 1, tiny-mda-ts 1, tiny-softmax 1. Their answers have no typicality, no "
    )
    assert lacking in result.stdout


def test_classify_prints_a_table(server: Server, state: Path, files: list[Path]) -> None:
    result = serving("classify", *files[:2], "--model", "tiny-mda", "--state", state, check=True)

    for word in ("image", "label", "probability", "component", "log-density", "one.png", "two.png"):
        assert word in result.stdout.replace("\n", "")


def test_classify_marks_what_is_less_dense_than_the_test_images(
    server: Server, state: Path, files: list[Path], images: list[bytes]
) -> None:
    pixels = np.stack([np.asarray(Image.open(BytesIO(image)))[None] for image in images[:2]])
    below, above = gmm_answers(pixels)["log_density"]
    arguments = (*files[:2], "--model", "tiny-mda-ts")

    here = serving("classify", *arguments, "--state", state, check=True).stdout
    elsewhere = serving("classify", *arguments, "--url", server.url, check=True).stdout

    assert re.search(rf"one\.png .* \* {below:.2f} *\n", here)
    assert re.search(rf"two\.png .* [^*]  {above:.2f} *\n", here)
    note = "* atypical: less dense than 99 % of the images that tiny-mda-ts:1 was tested on, -8.50; probably of none of"
    assert f"{note} its classes\n" in here
    assert "*" not in elsewhere


def test_classify_marks_nothing_where_the_bundle_knows_no_bound(
    bundle_dir: Path, softmax_dir: Path, tmp_path: Path, images: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for folder in (bundle_dir, softmax_dir):
        package(folder, model_store=tmp_path)
        answers += Predictor.open(folder).predict([images[0]])

    print_answers([Path("mixture.png"), Path("softmax.png")], answers, tmp_path)

    assert "*" not in capsys.readouterr().out


def test_classify_shows_what_held_out_images_say(
    server: Server, state: Path, files: list[Path], typical_dir: Path
) -> None:
    stranger = files[0].parent / "stranger.png"
    stranger.write_bytes(encoded(np.tile(np.array([[0, 255], [255, 0]], np.uint8), (4, 4))))
    shown = serving("classify", *files[:2], stranger, "--model", "tiny-typical", "--url", server.url, check=True).stdout
    refused = serving("classify", files[0], "--model", "tiny-typical", "--coverage", 0.9999, "--state", state)

    predictor = Predictor.open(typical_dir)
    answers = predictor.predict([file.read_bytes() for file in (*files[:2], stranger)], Options(coverage=0.9))
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines() if ".png" in line)
    assert "typicality" in shown
    assert "log-density" not in shown
    for file, answer in zip((*files[:2], stranger), answers, strict=True):
        assert isinstance(answer, dict)
        mark = "* " if "atypical" in answer["flags"] else ""
        assert f"{mark}{answer['typicality']:.4f}" in lines[file.name]
    assert (refused.returncode, "coverage must be above 0 and at most 0.9" in refused.stdout) == (1, True)


def test_what_is_told_of_answers_fits_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    cross = {"label": "cross", "probability": 0.97, "component": 1, "component_name": "tilted"}
    cross["component_probability"] = 0.9
    noise = {"label": "noise", "probability": 0.03, "component": 0, "component_probability": 1.0}
    model = {"name": "m", "version": "2"}
    of_set = {"coverage": 0.9, "set": ["cross", "noise", "a", "b", "c", "d", "e"]}
    answers = [
        {
            **cross,
            "top_k": [cross, noise],
            "typicality": 0.0025,
            "labels_at": of_set,
            "flags": ["atypical"],
            "model": model,
        },
        {**noise, "top_k": [noise], "typicality": 0.5, "flags": ["typicality_too_coarse"], "model": model},
    ]

    print_answers([Path("one.png"), Path("two.png")], answers)

    said = " ".join(capsys.readouterr().out.split())
    assert "component typicality possible at 90 %" in said
    assert "one.png cross 0.9700 1 tilted 0.90 * 0.0025 cross, noise, a, b, c and 2 more noise 0.0300 0 1.00" in said
    assert "two.png noise 0.0300 0 1.00 0.5000" in said
    assert "* atypical: less typical than all but 1 % of the images that were held out from the training of m:2" in said
    assert said.endswith("m:2 has too few held-out images to call any image atypical")


def test_classify_shows_an_error_in_its_row_and_exits_with_1(server: Server, state: Path, files: list[Path]) -> None:
    result = serving("classify", *files, "--model", "tiny-softmax", "--state", state)

    assert result.returncode == 1
    assert re.search(r"^ *broken\.png +error *$", result.stdout, re.MULTILINE)
    assert f"{files[2]}: undecodable_image: image must be a whole PNG image, got a broken one: " in result.stdout
    assert result.stderr == ""


def test_classify_prints_raw_answers(server: Server, state: Path, files: list[Path]) -> None:
    arguments = ("--model", "tiny-mda", "--top-k", 1, "--json", "--state", state)
    good = serving("classify", files[0], *arguments)
    bad = serving("classify", files[2], *arguments)

    assert (good.returncode, bad.returncode) == (0, 1)
    assert json.loads(good.stdout)["model"] == {"name": "tiny-mda", "version": "1"}
    assert len(json.loads(good.stdout)["top_k"]) == 1
    assert json.loads(bad.stdout)["error"]["code"] == "undecodable_image"


def test_classify_by_url_and_what_it_refuses(server: Server, state: Path, files: list[Path], tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(17 * 2**20)
    here = ("--state", state)

    by_url = serving("classify", files[0], "--url", server.url, "--model", "tiny-mda", "--json", check=True)
    assert json.loads(by_url.stdout)["label"]
    no_model = serving("classify", files[0], *here)
    assert (
        no_model.stderr == "error: --model must be one of tiny-mda, tiny-mda-ts, tiny-softmax, tiny-typical, got none\n"
    )
    unknown = serving("classify", files[0], "--model", "x", *here)
    assert unknown.stderr.endswith("/predictions/x must answer with 200, got 404: Model not found: x\n")
    missing = serving("classify", tmp_path / "none.png", "--model", "tiny-mda", *here)
    assert missing.stderr == f"error: {tmp_path / 'none.png'} must be a readable file, got No such file or directory\n"
    too_large = serving("classify", large, "--model", "tiny-mda", "--json", *here)
    assert json.loads(too_large.stdout)["error"]["code"] == "request_too_large"


def test_a_second_start_is_refused(server: Server, state: Path, model_store: Path) -> None:
    result = serving("start", "--model-store", model_store, "--state", state)

    assert result.returncode == 1
    assert result.stderr == (
        f"error: no server must run in {state} yet, got one at {server.url}: stop it, or choose --state\n"
    )


def test_models_are_named_with_commas_or_again(model_store: Path, tmp_path: Path) -> None:
    options = ("--models", "tiny-mda,", "--models", "tiny-softmax,other")
    result = serving("start", *options, "--model-store", model_store, "--state", tmp_path)

    assert result.stderr.endswith("got 'other'\n")


def test_a_port_in_use_is_named(model_store: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = serving("start", "--port", port, "--model-store", model_store, "--state", tmp_path)

    assert result.returncode == 1
    assert result.stderr.endswith(f"got 127.0.0.1:{port}: Address already in use\n")
