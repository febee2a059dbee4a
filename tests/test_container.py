"""What the Dockerfile says, as far as it can be told without building it."""

import json
import re
import shlex
import subprocess
import sys
from urllib.parse import urlsplit

from conftest import ROOT, free_port

from serving.torchserve.state import Server

TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]


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


def test_what_is_installed_is_pinned() -> None:
    (base,) = (line.split("=", 1)[1] for line in LINES if line.startswith("ARG BASE="))
    installs = [line for line in TEXT.split("RUN ") if "pip install" in line or "pip sync" in line]

    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    assert {line.split()[1] for line in LINES if line.startswith("FROM")} == {"${BASE}"}
    for line in installs:
        for command in re.findall(r"pip (?:install|sync) [^;&]*", line):
            assert "--require-hashes" in command or "--torch-backend cpu" in command, command
    assert "--hash=sha256:" in (ROOT / "requirements" / "uv.txt").read_text()


def test_the_service_owns_nothing_but_its_state() -> None:
    user = next(index for index, line in enumerate(LINES) if line.startswith("USER"))
    owned = [word for line in LINES[:user] if "install -d" in line for word in shlex.split(line.split("install -d")[1])]

    assert not any("--chown" in line or "chown" in line for line in LINES)
    assert owned[-1] == ".serving"
    assert not any(line.startswith(("COPY", "RUN", "USER")) for line in LINES[user + 1 :])
