"""What is said of the machine that measures."""

import subprocess
from pathlib import Path

import pytest

from training.machine import cpu, stamp

CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse avx2 avx512f avx512_vnni

processor\t: 1
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse avx2 avx512f avx512_vnni
"""


def test_a_cpu_is_told_by_model_and_by_what_graphs_run_by(tmp_path: Path) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text(CPUINFO)

    assert cpu(facts) == {"cpu_model": "Some CPU @ 2.00GHz", "cpu_flags": ["avx2", "avx512f", "avx512_vnni"]}
    assert cpu(tmp_path / "none") == {}


def test_a_stamp_names_the_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "commit" not in stamp()

    (tmp_path / "file").write_text("one")
    for command in (
        ["init", "-q"],
        ["add", "file"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *command], check=True)
    clean = stamp()["commit"]
    (tmp_path / "file").write_text("two")

    assert stamp()["commit"] == clean + "+"
    assert {"machine", "versions", "date"} <= set(stamp())
