"""The load test, run against a real server for a few seconds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.torchserve.launch import Server

ROOT = Path(__file__).resolve().parents[1]


def locust(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "load_tests/locustfile.py", "--headless", "--host", server.url]
    command += ["--users", "4", "--spawn-rate", "4", "--run-time", "4s", "--only-summary", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_form_is_answered_right_under_load(server: Server, tmp_path: Path) -> None:
    report = tmp_path / "report.html"

    result = locust(server, "--model", "tiny-mda-ts", "--html", str(report))

    assert result.returncode == 0, result.stdout + result.stderr
    summary = re.search(r"([\d,]+) requests, [\d,.]+ requests/s, p50 .* ms, .* 0 failures", result.stdout)
    assert summary is not None, result.stdout
    assert int(summary[1].replace(",", "")) > 20
    for form in ("raw body", "multipart", "json, 1 of 3 corrupt", "corrupt"):
        assert form in result.stderr  # locust prints its table there
    assert "<html" in report.read_text()


@pytest.mark.parametrize(("allowed", "code"), [("0.01", 1), ("1", 0)])
def test_exit_code_follows_the_failure_threshold(server: Server, tmp_path: Path, allowed: str, code: int) -> None:
    wrong = tmp_path / "locustfile.py"  # the same test with one expectation broken
    text = (ROOT / "load_tests" / "locustfile.py").read_text()
    wrong.write_text(text.replace('code == 400 and response.json()["error"]["code"] ==', "code == 418 and '' =="))
    if "418" not in wrong.read_text():
        pytest.fail("the expectation to break must stand in the locustfile, got none")

    result = locust(server, "-f", str(wrong), "--model", "tiny-mda-ts", "--max-failures", allowed)

    assert result.returncode == code, result.stdout + result.stderr
