"""Who reaches a server: keys that are given and survive a restart, the exporter's address, settings of this server."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import exporter_of, serving, with_int8

from serving.errors import ServerError
from serving.keys import INFERENCE_VARIABLE, KEY
from serving.settings import WorkerSettings, changed
from serving.speedup import told
from serving.start_text import print_started
from serving.status_table import print_status
from serving.torchserve import launch, process
from serving.torchserve.archive import package, read_settings
from serving.torchserve.drain import stand_in_line
from serving.torchserve.state import Server, load

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = WorkerSettings(workers=1, threads=1, batch_size=8)
INFERENCE, MANAGEMENT = "given.to-clients_1", "m" * 128
BEYOND = "127.0.0.2"  # another address of this machine stands for one that the network reaches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def key_file(folder: Path) -> Path:
    file = folder / "mine.json"
    file.write_text(json.dumps({"inference": INFERENCE, "management": MANAGEMENT}))
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def guarded(bundle_dir: Path, folder: Path, key_file: Path) -> Iterator[Server]:
    """A server with keys of ours, other settings than its archive's, and an exporter elsewhere."""
    bundle = with_int8(bundle_dir, folder / "tiny-mda" / "1")
    package(bundle, model_store=folder / "store", settings=PACKAGED)
    options = ["--key-file", key_file, "--metrics-host", BEYOND, "--precision", "int8", "--batch-size", 3]
    start = ["start", "--port", 0, "--device", "cpu", "--model-store", folder / "store", "--state", folder / "state"]
    said = serving(*start, *options, "--max-instances", 2, "--max-request-bytes", 50_000, check=True).stdout
    server = load(folder / "state")
    assert server is not None
    lines = said.splitlines()
    assert told("tiny-mda", server.speedups["tiny-mda:1"]) in lines
    assert f"Requests need a key, Authorization: Bearer KEY; it is `inference` in {key_file}" in lines
    assert f"  try   curl -H 'Authorization: Bearer KEY' -T IMAGE {server.url}/predictions/tiny-mda" in lines
    assert not any(key in said for key in (INFERENCE, MANAGEMENT))
    yield server
    launch.stop(folder / "state", grace_s=0, drain_s=0)


def asked(url: str, key: str | None, **request: object) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.request("POST", url, headers=headers, trust_env=False, timeout=60, **request)  # type: ignore[arg-type]


def test_each_interface_takes_its_own_key_and_no_other(guarded: Server, images: list[bytes]) -> None:
    url = f"{guarded.url}/predictions/tiny-mda"
    by_key = {key: asked(url, key, content=images[0]).status_code for key in (INFERENCE, MANAGEMENT, "x" * 20, None)}
    assert by_key == {INFERENCE: 200, MANAGEMENT: 400, "x" * 20: 400, None: 400}

    models = f"{guarded.management_url}/models"
    answers = {
        key: httpx.get(models, headers={"Authorization": f"Bearer {key}"}, trust_env=False).status_code
        for key in (INFERENCE, MANAGEMENT, "x" * 20)
    }
    assert answers == {INFERENCE: 400, MANAGEMENT: 200, "x" * 20: 400}


@pytest.mark.parametrize(("queue", "is_said"), [(9, True), (128, False)])
def test_a_start_says_where_few_requests_may_wait(
    guarded: Server, folder: Path, queue: int, is_said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    print_started(replace(guarded, queue=queue, max_request_bytes=16 * 2**20), folder / "state", "")

    line = (
        "At most 9 requests of a model may wait, for memory must do for as many of 16777216 bytes: a lower "
        "--max-request-bytes lets more wait, up to 128"
    )
    assert (line in capsys.readouterr().out.splitlines()) is is_said


@pytest.mark.parametrize(("key", "code"), [(INFERENCE, 0), (None, 1)])
def test_the_load_test_names_the_key_of_its_environment(
    guarded: Server, tmp_path: Path, key: str | None, code: int
) -> None:
    mix = tmp_path / "mix.toml"
    mix.write_text("[models]\ntiny-mda = 1\n[kinds]\npng = 1\n")
    command = [sys.executable, "-m", "locust", "-f", "load_tests/locustfile.py", "--headless", "--host", guarded.url]
    environment = os.environ | ({} if key is None else {INFERENCE_VARIABLE: key})

    done = subprocess.run(
        [*command, "--users", "1", "--run-time", "1s", "--mix", mix],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == code, done.stdout + done.stderr
    assert ("got 400" in done.stderr) is (key is None)


def test_a_ticket_with_another_key_is_no_answer(guarded: Server) -> None:
    deadline = time.monotonic() + 60
    (refused,) = stand_in_line(guarded, ["tiny-mda/1"], "x" * 20, deadline)

    assert refused.startswith('tiny-mda/1 gave 400 { "code": 400, "type": "InvalidKeyException"')
    assert stand_in_line(guarded, ["tiny-mda/1"], INFERENCE, deadline) == []


def test_keys_stand_in_no_log_command_line_or_workers_environment(guarded: Server, folder: Path) -> None:
    processes = [*process.members(guarded.java), *process.members(guarded.keeper)]
    words = [" ".join([*one.cmdline(), *one.environ().values()]) for one in processes]
    places = (folder / "state", Path(guarded.tmp))
    files = [file for place in places for file in place.rglob("*") if file.is_file()]
    holders = {file for file in files if {INFERENCE, MANAGEMENT} & set(KEY.findall(file.read_text("latin-1")))}

    assert len(processes) == 4
    assert [text for text in words if INFERENCE in text or MANAGEMENT in text] == []
    assert {file.name for file in holders} == {"key_file.json", "TokenAuthorization.class"}
    assert [place.stat().st_mode & 0o077 for place in (folder / "state" / "key_file.json", places[1])] == [0, 0]


def test_the_exporter_is_reached_where_it_was_told_to_listen_and_all_else_stays(guarded: Server) -> None:
    base = guarded.metrics_url.removesuffix("/metrics")
    ready, metrics = (httpx.get(f"{base}/{path}", trust_env=False) for path in ("ready", "metrics"))

    assert base.startswith(f"http://{BEYOND}:")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    assert 'discriminant_workers_ready{model="tiny-mda",version="1"} 1.0' in metrics.text
    of_exporter, of_java = (
        {one.laddr.ip.removeprefix("::ffff:") for one in connections if one.status == psutil.CONN_LISTEN}
        for connections in (psutil.Process(pid).net_connections() for pid in (exporter_of(guarded), guarded.pid))
    )
    assert (of_exporter, of_java) == ({BEYOND}, {"127.0.0.1"})


def test_settings_of_this_server_leave_the_store_alone(guarded: Server, folder: Path) -> None:
    url = f"{guarded.url}/predictions/tiny-mda"
    refused = asked(url, INFERENCE, json={"instances": [{"b64": ""}] * 3})
    own = read_settings(folder / "state" / "models" / "tiny-mda-1.mar")

    assert refused.json()["error"]["message"] == "instances must hold 1 to 2 images, got 3"
    assert asked(url, INFERENCE, content=bytes(50_001)).status_code == 413
    changes = {"precision": "int8", "batch_size": 3, "max_instances": 2, "max_request_bytes": 50_000}
    assert own == changed(PACKAGED, **changes)
    assert read_settings(folder / "store" / "tiny-mda-1.mar") == PACKAGED
    configured = (folder / "state" / "config.properties").read_text().splitlines()
    assert {f"model_store={folder}/state/models", "max_request_size=50000", "max_response_size=16777216"} <= {
        *configured
    }


@pytest.mark.parametrize(("speedup", "warned"), [(0.9, True), (3.4, False)])
def test_status_tells_where_int8_brings_nothing(
    speedup: float, warned: bool, guarded: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = launch.status(folder / "state")
    assert statuses is not None

    print_status(statuses, replace(guarded, speedups={"tiny-mda:1": speedup}), folder / "state")
    shown = capsys.readouterr().out
    assert f"int8, {speedup} x float32" in shown
    assert ("int8 brings nothing on this CPU (0.9 times float32's speed): serve tiny-mda in float32" in shown) is warned


def test_classify_names_a_key(guarded: Server, key_file: Path, images: list[bytes], folder: Path) -> None:
    image = folder / "image.png"
    image.write_bytes(images[0])
    elsewhere = ("classify", image, "--url", guarded.url, "--model", "tiny-mda", "--json")

    assert json.loads(serving(*elsewhere, "--key-file", key_file, check=True).stdout)["label"]
    assert json.loads(serving(*elsewhere, DISCRIMINANT_INFERENCE_KEY=INFERENCE, check=True).stdout)["label"]
    wrong = serving(*elsewhere, DISCRIMINANT_INFERENCE_KEY="x" * 20)
    assert wrong.returncode == 1
    assert "got 400: the key is none of the server's, or lacks: name one with --key-file or " in wrong.stderr
    here = ("classify", image, "--state", folder / "state", "--json")
    assert json.loads(serving(*here, check=True).stdout)["label"]
    assert json.loads(serving(*here, "--key-file", key_file, check=True).stdout)["label"]


def test_keys_of_the_state_folder_survive_a_restart(model_store: Path, tmp_path: Path, images: list[bytes]) -> None:
    keys, answers = [], []
    try:
        for _ in range(2):
            server = launch.start(["tiny-mda"], model_store=model_store, state=tmp_path, port=0, token_auth=True)
            keys.append(json.loads((tmp_path / "keys.json").read_text()))
            answers.append(asked(f"{server.url}/predictions/tiny-mda", keys[0]["inference"], content=images[0]))
            expires = json.loads((tmp_path / "key_file.json").read_text())["inference"]["expiration time"]
            assert int(expires[1:].split("-")[0]) > 900_000_000  # years
            launch.stop(tmp_path, grace_s=0, drain_s=0)
    finally:
        launch.stop(tmp_path, grace_s=0, drain_s=0)

    assert keys[0] == keys[1]
    assert [answer.status_code for answer in answers] == [200, 200]


def test_keys_for_a_server_that_asks_for_none(model_store: Path, tmp_path: Path, key_file: Path) -> None:
    with pytest.raises(
        ServerError, match=rf"^a server that asks for no key must get no key file, got {key_file}: leave one out$"
    ):
        launch.start(model_store=model_store, state=tmp_path, port=0, token_auth=False, key_file=key_file)


def test_a_stock_server_takes_no_keys(
    model_store: Path, tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = r"^a stock TorchServe must draw its keys itself, got {}: leave out that or --stock$"

    with pytest.raises(ServerError, match=message.format("--key-file")):
        launch.start(model_store=model_store, state=tmp_path, port=0, stock=True, key_file=key_file)
    monkeypatch.setitem(os.environ, "DISCRIMINANT_MANAGEMENT_KEY", MANAGEMENT)
    with pytest.raises(ServerError, match=message.format("DISCRIMINANT_MANAGEMENT_KEY")):
        launch.start(model_store=model_store, state=tmp_path, port=0, stock=True, token_auth=True)


def test_a_stock_server_needs_torch(model_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed

    with pytest.raises(
        ServerError, match=r"^torch must be installed for a stock TorchServe's workers, got none: leave"
    ):
        launch.start(model_store=model_store, state=tmp_path, port=0, stock=True)


def test_a_stock_server_answers_the_same_drains_and_stops(
    model_store: Path, tmp_path: Path, server: Server, images: list[bytes]
) -> None:
    options = (
        "--models",
        "tiny-mda",
        "--port",
        0,
        "--device",
        "cpu",
        "--model-store",
        model_store,
        "--state",
        tmp_path,
    )
    serving("start", "--stock", "--token-auth", *options, check=True)
    stock = load(tmp_path)
    assert stock is not None
    key = json.loads((tmp_path / "key_file.json").read_text())["inference"]["key"]
    answer = asked(f"{stock.url}/predictions/tiny-mda", key, content=images[0])
    metrics = httpx.get(stock.metrics_url, trust_env=False).text
    libraries = [
        {Path(library.path).name for library in worker.memory_maps()}
        for worker in process.members(stock.java)
        if worker.pid != stock.pid
    ]
    ready = serving("status", "--state", tmp_path)
    stopped = serving("stop", "--state", tmp_path)

    assert len(key) < 16  # TorchServe's own
    assert answer.json() == asked(f"{server.url}/predictions/tiny-mda", None, content=images[0]).json()
    assert "ts_queue_latency_microseconds{" in metrics
    assert "ts_queue_latency_seconds_sum" not in metrics
    assert ["libtorch_cpu.so" in names for names in libraries] == [True]
    assert [file.name for file in tmp_path.rglob("*.class")] == []
    assert ready.returncode == 0
    assert (stopped.returncode, stopped.stdout) == (0, f"Stopped the server at {stock.url}.\n")
    assert process.members(stock.java) == []
