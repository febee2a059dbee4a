"""What measures: the machine, its CPU and what that can compute with, the versions, and the commit.

stamp()["cpu_flags"]      # ["avx2", "avx512f", "avx512_bf16", "avx512_vnni"]
"""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

CPU_FACTS = Path("/proc/cpuinfo")
TOLD_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")  # what graphs run by


def stamp() -> dict[str, Any]:
    """Where, by what and when a figure was measured; of a folder that git does not know, without a commit."""
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return {
        "machine": machine,
        **cpu(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "onnxruntime": version("onnxruntime-gpu"),
        },
        **_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def cpu(facts: Path = CPU_FACTS) -> dict[str, Any]:
    """The CPU's model, and which of the instructions it has that make graphs quick; nothing where nobody says."""
    if not facts.is_file():
        return {}
    lines = (line.partition(":") for line in facts.read_text(encoding="utf-8").splitlines())
    said = {name.strip(): value.strip() for name, _, value in lines}
    flags = said.get("flags", "").split()
    return {
        "cpu_model": said.get("model name", platform.machine()),
        "cpu_flags": [flag for flag in TOLD_FLAGS if flag in flags],
    }


def _commit() -> dict[str, str]:
    """The commit, with a + where files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": done.stdout.strip()}
