"""The command line, run as a user runs it."""

import json
import re
import socket
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import gmm_answers, serving
from PIL import Image

from load_tests import bench_serve
from serving.answer_table import print_answers
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

    context = command.make_context("bench_serve", ["--precision", "float32", "--precision", "int8", "--device", "gpu"])
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
    assert result.stdout.count("1/1") == 3


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
    assert no_model.stderr == "error: --model must be one of tiny-mda, tiny-mda-ts, tiny-softmax, got none\n"
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
