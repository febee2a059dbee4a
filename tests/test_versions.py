"""A new version under load, and back."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import gmm_answers, golden_images, running, serving, tampered, until, with_int8

from serving.errors import BundleError, ServerError
from serving.settings import WorkerSettings, changed
from serving.torchserve import launch, versions
from serving.torchserve.archive import Archive, package, read_settings
from serving.torchserve.state import Server
from serving.torchserve.store import archives

SETTINGS = WorkerSettings(workers=1, threads=1, batch_size=5)


@pytest.fixture
def served(bundle_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """The state folder of a server of its own that takes new versions."""
    state = tmp_path / "state"
    package(bundle_dir, model_store=tmp_path / "store", settings=SETTINGS)
    launch.start(None, model_store=tmp_path / "store", state=state, device="cpu", port=0, model_api=True)
    yield state
    launch.stop(state, grace_s=0, drain_s=0)


class Asker(threading.Thread):
    """Asks for the default version all the time and notes what it gets."""

    def __init__(self, url: str, image: bytes) -> None:
        super().__init__(daemon=True)
        self.url, self.image = f"{url}/predictions/tiny-mda", image
        self.answers: list[tuple[int, str]] = []
        self.finished = threading.Event()

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            while not self.finished.is_set():
                answer = client.post(self.url, content=self.image)
                self.answers.append((answer.status_code, answer.json().get("model", {}).get("version", "")))

    def stop(self) -> list[tuple[int, str]]:
        self.finished.set()
        self.join(60)
        return self.answers


def test_a_version_is_deployed_and_rolled_back_without_a_failed_request(
    served: Path, make_bundle: Callable[..., Path], images: list[bytes], tmp_path: Path
) -> None:
    server = running(served)
    second = with_int8(make_bundle(version=2), tmp_path / "tiny-mda" / "2")
    asker = Asker(server.url, images[0])
    asker.start()
    deployed = serving("deploy", second, "--precision", "int8", "--state", served, check=True)
    shown = serving("status", "--state", served, check=True).stdout
    both = [httpx.post(f"{server.url}/predictions/tiny-mda/{v}", content=images[0], trust_env=False) for v in (1, 2)]
    back = serving("rollback", "tiny-mda", "--state", served, check=True)
    seen = len(asker.answers)
    until(lambda: len(asker.answers) > seen + 1)
    answers = asker.stop()

    assert "tiny-mda is version 2 now" in deployed.stdout
    assert [answer.json()["model"]["version"] for answer in both] == ["1", "2"]
    assert back.stdout == "tiny-mda is version 1 again; version 2 is gone\n"
    assert {status for status, _ in answers} == {200}
    assert read_settings(Path(server.store, "tiny-mda-2.mar.rolled-back")) == changed(SETTINGS, precision="int8")
    assert re.search(r"tiny-mda │ 1 +│ float32 +│ 1/1 .*\n.*tiny-mda │ 2 +│ int8, \d+\.\d x float32 │ 1/1", shown), (
        shown
    )
    assert re.search(r"^int8 (computes tiny-mda|brings nothing on this CPU) .*float32", deployed.stdout, re.MULTILINE)
    assert [file.name for file in (served / "models").iterdir()] == ["tiny-mda-1.mar"]
    changes = [version for n, (_, version) in enumerate(answers) if n == 0 or answers[n - 1][1] != version]
    assert changes == ["1", "2", "1"]
    gone = httpx.post(f"{server.url}/predictions/tiny-mda/2", content=images[0], trust_env=False)
    assert gone.status_code == 404
    assert sorted(file.name for file in Path(server.store).iterdir()) == [
        "tiny-mda-1.mar",
        "tiny-mda-2.mar.rolled-back",
    ]
    assert [(one.version, one.is_ready) for one in launch.status(served) or []] == [("1", True)]
    with pytest.raises(ServerError, match=r"^tiny-mda must have had another version while the server ran, got \[1\]$"):
        versions.rollback("tiny-mda", served)


def test_a_version_that_cannot_load_changes_nothing_and_the_next_one_is_none_the_worse(
    served: Path, make_bundle: Callable[..., Path], images: list[bytes], tmp_path: Path
) -> None:
    posterior: Any = gmm_answers(golden_images())["posterior"]
    broken = tampered(make_bundle(version=2), tmp_path / "tiny-mda" / "2", posterior=np.flip(posterior, 1))

    result = serving("deploy", broken, "--state", served)
    answer = httpx.post(f"{running(served).url}/predictions/tiny-mda", content=images[0], trust_env=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: tiny-mda:2 must load, got serving.errors.BundleError: posterior must be ")
    assert answer.json()["model"]["version"] == "1"
    assert [one.version for one in launch.status(served) or []] == ["1"]
    assert [archive.version for archive in archives(Path(running(served).store))] == [1]  # so the next start serves it
    assert versions.deploy(make_bundle(version=2), served) == Archive("tiny-mda", 2)
    with pytest.raises(
        BundleError, match=r"^precision of .* must be float32, got int8: export the bundle with --int8$"
    ):
        versions.deploy(make_bundle(version=3), served, precision="int8")
    versions.deploy(make_bundle("another"), served, batch_size=2)
    assert read_settings(served / "models" / "another-1.mar") == WorkerSettings(batch_size=2)
    most = 16 * 1024 * 1024
    for limit in ("max_request_bytes", "max_response_bytes"):
        message = rf"^{limit} must be at most the server's {most}, got {most + 1}: start it anew$"
        with pytest.raises(ServerError, match=message):
            versions.deploy(make_bundle(version=3), served, **{limit: most + 1})


def test_a_version_that_is_served_already_is_refused_and_its_archive_stays(served: Path, make_bundle: Any) -> None:
    archive = Path(running(served).store, "tiny-mda-1.mar")
    before = archive.stat()

    with pytest.raises(ServerError, match=r"^version of tiny-mda must be a new one, got 1, which is served already$"):
        versions.deploy(make_bundle(), served)
    assert (archive.stat().st_mtime_ns, archive.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_what_cannot_be_deployed(server: Server, state: Path, bundle_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"^the server must take new versions, got one that does not: start it with "):
        versions.deploy(bundle_dir, state)
    with pytest.raises(ServerError, match=rf"^a server must run in {tmp_path}, got none: start one$"):
        versions.rollback("tiny-mda", tmp_path)
    with pytest.raises(ServerError, match=r"missing, got none: start one$"):
        versions.rollback("tiny-mda", tmp_path / "missing")
    result = serving("deploy", bundle_dir, "--state", tmp_path)
    assert (result.returncode, json.dumps(result.stderr)[:30]) == (1, '"error: a server must run in /')
