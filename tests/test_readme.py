"""The README's examples, run or parsed as they stand there."""

import contextlib
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

import serving.__main__
import training.__main__
from serving.torchserve.launch import Server

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
APPS = {"training": training.__main__.app, "serving": serving.__main__.app}


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    pages = [README, (ROOT / "docs" / "deploy.md").read_text()]
    lines = [line for page in pages for block in blocks("bash", page) for line in block.splitlines()]
    lines += re.findall(r"`(python -m .*?)`", README)
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python -m ")]


def test_first_command_stands_within_the_first_twenty_lines() -> None:
    first = README.splitlines()[:20]

    assert any(line.startswith("make demo") for line in first)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_command_parses(command: list[str]) -> None:
    _, _, module, name, *arguments = command
    group = typer.main.get_command(APPS[module])

    subcommand = group.get_command(typer.Context(group), name)
    context = subcommand.make_context(name, arguments)

    assert context.command is subcommand


def test_make_targets_exist() -> None:
    named = {line.split()[1] for block in blocks("bash") for line in block.splitlines() if line.startswith("make ")}
    known = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert named
    assert named <= known


def test_curl_and_python_examples_run(server: Server, images: list[bytes], tmp_path: Path) -> None:
    for index, image in enumerate(images[:3]):
        (tmp_path / f"{index}.png").write_bytes(image)

    def adapt(text: str) -> str:
        text = text.replace("http://127.0.0.1:8080", server.url).replace("mnist-mda", "tiny-typical")
        return re.sub(r"data/samples/mnist/[\w-]+\.png", str(tmp_path / "0.png"), text).replace(
            "data/samples/mnist", str(tmp_path)
        )

    curls = next(block for block in blocks("bash") if block.startswith("curl")).splitlines()
    first, asked = (
        json.loads(subprocess.run(shlex.split(adapt(curl)), capture_output=True, check=True).stdout) for curl in curls
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(adapt(blocks("python")[0]), {})

    assert set(asked) - {"component_name"} == set(json.loads(blocks("json")[0])) - {"component_name"}
    assert set(asked) - set(first) == {"labels_at"}
    assert len(printed.getvalue().splitlines()) == 3


def test_example_answer_adds_up() -> None:
    answer = json.loads(blocks("json")[0])

    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["probability"] == answer["probabilities"][answer["label"]]
    assert answer["component_probability"] == answer["components"][answer["label"]][answer["component"]]
