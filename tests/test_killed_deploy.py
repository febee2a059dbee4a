"""A deploy or rollback that is interrupted, or killed at its worst moments, on a real server."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from conftest import ROOT, running, until

from serving.errors import ServerError
from serving.settings import WorkerSettings
from serving.torchserve import launch, versions
from serving.torchserve.archive import Archive, package
from serving.torchserve.management import Management
from serving.torchserve.state import Server, save
from serving.torchserve.store import choose

WAIT_S = 60
KILL = "lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def served(bundle_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """The state folder of a server of its own that takes new versions."""
    state = tmp_path / "state"
    package(bundle_dir, model_store=tmp_path / "store", settings=WorkerSettings(workers=1, threads=1))
    launch.start(None, model_store=tmp_path / "store", state=state, device="cpu", port=0, model_api=True)
    yield state
    launch.stop(state, grace_s=0, drain_s=0)


def begun(*words: object) -> subprocess.Popen[str]:
    """A command that is under way."""
    command = [sys.executable, "-m", "serving", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed(at: str, state: Path, *command: object) -> None:
    """Run a command that is killed where it would call a function, named `module.function`."""
    module, function = at.split(".")
    code = f"import os, signal; from serving.__main__ import main; from serving.torchserve import {module}\n"
    code += f"{module}.{function} = {KILL}\nmain()"
    words = [*map(str, command), "--state", str(state)]
    assert subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, timeout=WAIT_S).returncode == -signal.SIGKILL


def seen(state: Path, image: bytes) -> dict[str, object]:
    """What there is of the model's versions: the default's answer, the server's, its archives, the next start's."""
    server = running(state)
    answer = httpx.post(f"{server.url}/predictions/tiny-mda", content=image, trust_env=False, timeout=60).json()
    return {
        "default": int(answer["model"]["version"]),
        "registered": [int(one.version) for one in launch.status(state) or []],
        "history": server.history["tiny-mda"],
        "archives": sorted(file.name for file in (state / "models").iterdir()),
        "next start": [one.version for one in choose(None, Path(server.store))],
    }


def whole(*history: int) -> dict[str, object]:
    """What there should be: the versions of a history, the last of them in front."""
    archives = [Archive("tiny-mda", version).file for version in sorted(history)]
    default = history[-1]
    return {
        "default": default,
        "registered": sorted(history),
        "history": list(history),
        "archives": archives,
        "next start": [default],
    }


def test_a_deploy_that_is_interrupted_changes_nothing_and_a_rollback_is_finished(
    served: Path, make_bundle: Callable[..., Path], images: list[bytes]
) -> None:
    second = make_bundle(version=2)
    deploy = begun("deploy", second, "--state", served)
    until(lambda: Management.of(running(served), served).status("tiny-mda", 2))
    deploy.send_signal(signal.SIGTERM)
    assert deploy.communicate(timeout=WAIT_S) == ("", "Interrupted; the server is as it was.\n")
    assert deploy.returncode == 130
    assert seen(served, images[0]) == whole(1)

    versions.deploy(second, served)
    assert seen(served, images[0]) == whole(1, 2)
    rollback = begun("rollback", "tiny-mda", "--state", served)
    until(Path(running(served).store, "tiny-mda-2.mar.rolled-back").exists)
    rollback.send_signal(signal.SIGINT)
    assert rollback.communicate(timeout=WAIT_S) == ("tiny-mda is version 1 again; version 2 is gone\n", "")
    assert rollback.returncode == 0
    assert seen(served, images[0]) == whole(1)


def test_a_deploy_that_was_killed_before_it_was_in_the_store_is_undone(
    served: Path, make_bundle: Callable[..., Path], images: list[bytes]
) -> None:
    second = make_bundle(version=2)
    made: dict[str, object] = {"archives": ["tiny-mda-1.mar", "tiny-mda-2.mar"]}
    none = r"^tiny-mda must have had another version while the server ran, got \[1\]$"

    killed("versions.speedups", served, "deploy", second)
    assert seen(served, images[0]) == whole(1) | made
    killed("versions.wait_ready", served, "deploy", second)
    assert seen(served, images[0]) == whole(1) | made | {"registered": [1, 2]}
    with pytest.raises(ServerError, match=none):
        versions.rollback("tiny-mda", served)
    assert seen(served, images[0]) == whole(1)
    killed("versions.publish", served, "deploy", second)
    assert seen(served, images[0]) == whole(1) | made | {"registered": [1, 2], "default": 2}
    with pytest.raises(ServerError, match=none):
        versions.rollback("tiny-mda", served)
    assert seen(served, images[0]) == whole(1)


def test_a_deploy_that_was_killed_when_it_was_in_the_store_counts(
    served: Path, make_bundle: Callable[..., Path], images: list[bytes]
) -> None:
    killed("versions.save", served, "deploy", make_bundle(version=2))
    assert seen(served, images[0]) == whole(1, 2) | {"history": [1]}
    killed("versions.retire", served, "deploy", make_bundle(version=3))
    with_all = {"archives": [f"tiny-mda-{version}.mar" for version in (1, 2, 3)], "registered": [1, 2, 3]}
    assert seen(served, images[0]) == whole(2, 3) | with_all

    assert versions.rollback("tiny-mda", served) == (2, 3)
    assert seen(served, images[0]) == whole(2)


def test_a_new_model_whose_deploy_was_killed_is_taken_away(
    served: Path, make_bundle: Callable[..., Path], images: list[bytes]
) -> None:
    killed("versions.wait_ready", served, "deploy", make_bundle("another"))
    assert Management.of(running(served), served).models() == ["another", "tiny-mda"]

    versions.deploy(make_bundle(version=2), served)
    assert Management.of(running(served), served).models() == ["tiny-mda"]
    assert seen(served, images[0]) == whole(1, 2)


def test_a_server_that_is_about_to_stop_takes_no_version(server: Server, tmp_path: Path) -> None:
    (tmp_path / "draining").touch()
    record = replace(server, model_api=True, tmp=str(tmp_path))
    save(record, tmp_path)

    with pytest.raises(ServerError, match=rf"^{server.url} must run on, got a stop: start it again$"):
        versions.rollback("tiny-mda", tmp_path)


def test_a_rollback_that_was_killed_is_carried_out_by_the_next_command(
    served: Path, make_bundle: Callable[..., Path], images: list[bytes]
) -> None:
    versions.deploy(make_bundle(version=2), served)
    killed("settle.make_default", served, "rollback", "tiny-mda")
    assert seen(served, images[0]) == whole(1, 2) | {"next start": [1]}
    killed("settle.save", served, "rollback", "tiny-mda")
    assert seen(served, images[0]) == whole(1, 2) | {"default": 1, "next start": [1]}
    versions.deploy(make_bundle(version=3), served)
    assert seen(served, images[0]) == whole(1, 3)
    killed("settle.save", served, "rollback", "tiny-mda")
    assert versions.rollback("tiny-mda", served) == (1, 3)
    assert seen(served, images[0]) == whole(1)


def test_a_version_that_was_started_beside_the_default_stays(
    served: Path, make_bundle: Callable[..., Path], images: list[bytes]
) -> None:
    store = Path(running(served).store)
    package(make_bundle(version=2), model_store=store, settings=WorkerSettings(workers=1, threads=1))
    launch.stop(served, grace_s=0)
    launch.start(["tiny-mda:1", "tiny-mda:2"], model_store=store, state=served, device="cpu", port=0, model_api=True)
    versions.deploy(make_bundle(version=3), served)

    archives = [f"tiny-mda-{version}.mar" for version in (1, 2, 3)]
    assert seen(served, images[0]) == whole(1, 3) | {"registered": [1, 2, 3], "archives": archives}


def test_a_deploy_fails_when_its_server_is_stopped(served: Path, make_bundle: Callable[..., Path]) -> None:
    server = running(served)
    management = Management.of(server, served)
    deploy = begun("deploy", make_bundle(version=2), "--state", served)
    until(lambda: management.status("tiny-mda", 2))

    stopped = launch.stop(served)
    said = deploy.communicate(timeout=WAIT_S)
    error = f"error: {server.url} must run until its workers are ready, got a stop: start it again\n"
    assert (deploy.returncode, said) == (1, ("", error))
    assert stopped == f"Stopped the server at {server.url}."
    assert choose(None, Path(server.store)) == (Archive("tiny-mda", 1),)
