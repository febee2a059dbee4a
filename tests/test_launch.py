"""Starting and stopping real servers, and everything that can go wrong on the way."""

import json
import os
import signal
import socket
import subprocess
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import ROOT, gmm_answers, golden_images, serving, tampered, until

from serving.errors import DeviceUnavailable, ServerError
from serving.lock import locked
from serving.torchserve import config, launch, logs, process
from serving.torchserve.archive import Archive, package
from serving.torchserve.management import Management
from serving.torchserve.memory import Memory
from serving.torchserve.ports import Ports, choose_ports, is_loopback
from serving.torchserve.state import Server, load, save

WAIT_S = 120
MEMORY = Memory(heap_bytes=8, uploads_bytes=4, queue=2)


@pytest.fixture
def begin_server(
    begin: Callable[..., subprocess.Popen[str]], own_state: Path, model_store: Path
) -> Callable[..., subprocess.Popen[str]]:
    """Run `start` for one model, without waiting for it."""
    start = ("start", "--models", "tiny-mda", "--port", 0, "--device", "cpu")
    return partial(begin, *start, "--model-store", model_store, "--state", own_state)


def leftovers(state: Path) -> list[str]:
    """Processes and folders that a server of this state would have left."""
    processes = [" ".join(p.info["cmdline"]) for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
    record = state / "server.json"
    return [line for line in processes if str(state) in line and "serving start" not in line] + [
        str(record) for record in [record] if record.exists()
    ]


def record(state: Path, **changes: object) -> Server:
    """Write a server.json by hand."""
    state.mkdir(parents=True, exist_ok=True)
    fields = {
        "java": process.Identity(2**22 + 1, 1),  # beyond Linux's greatest process id
        "url": "http://127.0.0.1:1",
        "management_url": "http://127.0.0.1:1",
        "keeper": process.Identity(2**22 + 2, 1),
        "metrics_url": "http://127.0.0.1:1/metrics",
        "torchserve_metrics_url": "http://127.0.0.1:1/metrics",
        "models": ("tiny-mda",),
        "gpus": 0,
        "store": str(state / "store"),
        "certificate": None,
        "model_api": False,
        "history": {"tiny-mda": [1]},
        "beside": {},
        "started": "2026-01-01T00:00:00+00:00",
        "tmp": str(state / "tmp"),
        "max_request_bytes": 1,
        "max_response_bytes": 1,
        "queue": 1,
        "speedups": {},
        **changes,
    }
    server = Server(**fields)  # type: ignore[arg-type]
    save(server, state)
    return server


def test_a_server_in_the_foreground_lives_until_sigterm(
    begin_server: Callable[..., subprocess.Popen[str]], own_state: Path, images: list[bytes]
) -> None:
    command = begin_server("--foreground", "--host", "0.0.0.0", "--metrics-host", "0.0.0.0")
    serving_line, key_line = (command.stdout.readline() if command.stdout else "" for _ in range(2))
    server = load(own_state)
    assert server is not None
    assert serving_line == f"Serving tiny-mda at {server.url}\n"
    place = own_state / "keys.json"
    assert key_line == f"Requests need a key, Authorization: Bearer KEY; it is `inference` in {place}\n"
    assert len(process.members(server.java)) == 2
    tmp = Path(server.tmp)
    assert tmp.is_dir()

    # Beyond the loopback address it asks for a key, which the command line knows.
    image = own_state / "image.png"
    image.write_bytes(images[0])
    without_key = httpx.post(f"{server.url}/predictions/tiny-mda", content=images[0], trust_env=False)
    assert without_key.status_code == 400
    assert serving("status", "--state", own_state).returncode == 0
    assert httpx.get(server.metrics_url.replace("/metrics", "/ready"), trust_env=False).status_code == 200
    assert json.loads(serving("classify", image, "--json", "--state", own_state, check=True).stdout)["label"]

    command.send_signal(signal.SIGTERM)
    output, errors = command.communicate(timeout=WAIT_S)
    assert (command.returncode, errors) == (0, "")
    assert output == f"Stopped the server at {server.url}.\n"
    assert leftovers(own_state) == []
    assert process.members(server.java) == []
    assert not tmp.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_leaves_nothing(
    begin_server: Callable[..., subprocess.Popen[str]], own_state: Path, number: int
) -> None:
    command = begin_server()
    until(lambda: (own_state / "server.json").exists())
    server = load(own_state)
    assert server is not None
    if number == signal.SIGINT:  # one signal finds Java alone, the other its worker too
        until(lambda: len(process.members(server.java)) == 2)

    command.send_signal(number)
    _, errors = command.communicate(timeout=WAIT_S)
    assert (command.returncode, errors) == (130, "Interrupted; nothing is left running.\n")
    assert leftovers(own_state) == []
    assert process.members(server.java) == []
    assert not Path(server.tmp).exists()


def test_a_model_that_fails_to_load_fails_the_start_with_its_reason(
    own_state: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    answers = gmm_answers(golden_images())["posterior"]
    other = tampered(bundle_dir, tmp_path / "tiny-mda" / "1", posterior=answers[:, ::-1])
    package(other, model_store=tmp_path / "store")

    result = serving("start", "--model-store", tmp_path / "store", "--state", own_state, "--port", 0, "--device", "cpu")
    assert result.returncode == 1
    assert result.stderr.startswith("error: tiny-mda:1 must load, got serving.errors.BundleError: posterior must be ")
    assert result.stderr.endswith(f"; see {own_state / 'logs'}\n")
    assert leftovers(own_state) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.onnx", r"model\.onnx with SHA-256 \w+ instead of \w+"),
        ("MAR-INF/MANIFEST.json", r"another MAR-INF/MANIFEST\.json"),
        ("bundle.json", "an archive without a bundle"),
        ("handler.py", r"other files: handler\.py"),
        ("model-config.yaml", r"another model-config\.yaml"),
    ],
)
def test_an_archive_that_was_tampered_with_is_refused(
    name: str, reason: str, own_state: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    damage(package(bundle_dir, model_store=tmp_path / "store"), name)

    with pytest.raises(ServerError, match=rf"tiny-mda-1\.mar must be an archive made by .*, got {reason}$"):
        launch.start(model_store=tmp_path / "store", state=own_state, device="cpu", port=0)
    assert leftovers(own_state) == []


def test_an_archive_of_another_model_is_refused(own_state: Path, bundle_dir: Path, tmp_path: Path) -> None:
    made = package(bundle_dir, model_store=tmp_path / "store")
    made.rename(made.with_name("other-1.mar"))

    with pytest.raises(ServerError, match=r"other-1\.mar must be an archive made by .*, got tiny-mda version 1$"):
        launch.start(model_store=tmp_path / "store", state=own_state, device="cpu", port=0)


def test_a_file_that_is_no_archive_is_refused(own_state: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "odd-1.mar").write_bytes(b"no archive")

    with pytest.raises(ServerError, match=r"odd-1\.mar must be an archive made by `python -m serving package`, got "):
        launch.start(model_store=tmp_path / "store", state=own_state)
    (tmp_path / "store" / "odd-1.mar").rename(tmp_path / "store" / "odd.mar")
    with pytest.raises(ServerError, match=r" must be named <name>-<version>\.mar, got odd\.mar$"):
        launch.start(model_store=tmp_path / "store", state=own_state)


def test_a_start_that_takes_too_long_leaves_nothing(own_state: Path, model_store: Path) -> None:
    with pytest.raises(
        ServerError, match=r"^workers of tiny-mda:1 must be ready within 0.1 s, got some that are not; see "
    ):
        launch.start(["tiny-mda"], model_store=model_store, state=own_state, device="cpu", port=0, ready_timeout_s=0.1)
    assert leftovers(own_state) == []


def test_a_server_that_was_killed_is_cleared_away(
    begin_server: Callable[..., subprocess.Popen[str]], own_state: Path
) -> None:
    command = begin_server()
    assert command.wait(WAIT_S) == 0, command.communicate()
    command.communicate()
    server = load(own_state)
    assert server is not None

    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not process.is_running(server.java))
    assert launch.status(own_state) is None
    with pytest.raises(ServerError, match=r"^TorchServe must stay up, got its end; see "):
        launch.wait(server, own_state)
    record(own_state, **vars(server))
    assert launch.stop(own_state) in (
        f"The server at {server.url} had ended already.",
        f"Stopped the server at {server.url}.",  # if its worker was still about to notice
    )
    assert launch.stop(own_state) == f"No server runs in {own_state}."
    assert process.members(server.java) == []
    assert leftovers(own_state) == []


def test_a_second_server_in_the_same_folder_is_refused(server: Server, state: Path, model_store: Path) -> None:
    with pytest.raises(
        ServerError, match=rf"^no server must run in {state} yet, got one at {server.url}: stop it, or "
    ):
        launch.start(model_store=model_store, state=state, port=0)


def test_two_starts_at_once_are_refused(own_state: Path, model_store: Path) -> None:
    own_state.mkdir()
    message = rf"^one command at a time must change {own_state}, got `deploy` under way: try again when it has ended$"

    with locked(own_state, "deploy"), pytest.raises(ServerError, match=message):
        launch.start(model_store=model_store, state=own_state, port=0)


def test_everything_but_inference_listens_on_the_loopback_address(server: Server) -> None:
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in psutil.Process(server.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }

    assert listening == {"127.0.0.1"}


def test_status_counts_the_workers(server: Server, state: Path) -> None:
    statuses = launch.status(state)

    assert statuses is not None
    assert [(one.name, one.version, one.workers, one.ready) for one in statuses] == [
        ("tiny-mda", "1", 1, 1),
        ("tiny-mda-ts", "1", 1, 1),
        ("tiny-softmax", "1", 1, 1),
        ("tiny-typical", "1", 1, 1),
    ]
    assert all(one.is_ready and not one.on_gpu for one in statuses)


def test_a_worker_that_is_gone_is_not_ready(server: Server, state: Path) -> None:
    worker = next(member for member in process.members(server.java) if member.pid != server.pid)
    worker.kill()

    until(lambda: not all(one.is_ready for one in launch.status(state) or []))
    assert serving("status", "--state", state).returncode == 1
    until(lambda: all(one.is_ready for one in launch.status(state) or []))


def test_a_missing_model_and_an_empty_store(own_state: Path, model_store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(ServerError, match=r"^model must be one of tiny-mda:1, tiny-mda-ts:1, .*, got 'nothing'$"):
        launch.start(["nothing"], model_store=model_store, state=own_state)
    with pytest.raises(
        ServerError, match=r"empty must hold a \.mar archive, got none: make one with `python -m serving"
    ):
        launch.start(model_store=tmp_path / "empty", state=own_state)


def test_a_gpu_that_is_not_there(own_state: Path, model_store: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        DeviceUnavailable, match=r"^device gpu must find an NVIDIA GPU, got none .*: choose cpu or auto$"
    ):
        launch.start(model_store=model_store, state=own_state, device="gpu")


def test_ports_are_six_in_a_row() -> None:
    first = choose_ports("127.0.0.1", "127.0.0.2", 0).inference

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"\(0 takes any\), got 127\.0\.0\.1:{port}: Address already in use$"):
            choose_ports("127.0.0.1", "127.0.0.1", port - 2)
    assert len({*vars(choose_ports("127.0.0.1", "127.0.0.2", 0)).values()}) == 6
    assert first > 0


def test_only_this_machine_reaches_the_loopback() -> None:
    hosts = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.1.2.3", "example.org")

    assert [is_loopback(host) for host in hosts] == [True, True, True, False, False, False]


def test_the_configuration_is_closed_by_default() -> None:
    models = {Archive("a", 2): 1, Archive("b", 1): 3}
    text = config.properties(models, Path("/ms"), config.Access(), Ports(1, 2, 3, 4, 5, 6), 0, 1000, 2**20, 7)
    values = dict(line.split("=", 1) for line in text.splitlines())

    assert values["load_models"] == "a=a-2.mar,b=b-1.mar"
    assert json.loads(json.loads(f'"{values["models"]}"'))["b"] == {"1": {"minWorkers": 3, "maxWorkers": 3}}
    assert values["management_address"] == "http://127.0.0.1:2"
    assert values["allowed_urls"] == "file:///ms/.*"
    assert values["enable_model_api"] == "false"
    assert values["disable_token_authorization"] == "true"
    assert values["number_of_gpu"] == "0"
    assert values["job_queue_size"] == "7"


def test_a_path_survives_javas_properties() -> None:
    text = config.properties(
        {}, Path("/mödels\\store"), config.Access("::1", token_auth=True), Ports(1, 2, 3, 4, 5, 6), 1, 1, 1, 1
    )

    assert "model_store=/m\\u00f6dels\\\\store\n" in text


def test_secrets_do_not_reach_the_workers_and_stray_settings_do_not_reach_the_server() -> None:
    base = {"PATH": "/bin", "TS_CONFIG_FILE": "/elsewhere", "PYTHONPATH": "/mine", "HOME": "/root"}
    base |= {"DISCRIMINANT_INFERENCE_KEY": "i" * 20, "DISCRIMINANT_MANAGEMENT_KEY": "m" * 20}
    environment = config.environment(base, Path("/java"), "/python", Path("/state"), Path("/tmp/x"))

    assert not {"TS_CONFIG_FILE", "DISCRIMINANT_INFERENCE_KEY", "DISCRIMINANT_MANAGEMENT_KEY"} & set(environment)
    assert environment["PATH"] == "/java/bin:/bin"
    assert environment["PYTHONPATH"] == f"{ROOT}:/mine"
    assert (environment["LOG_LOCATION"], environment["TMPDIR"]) == ("/state/logs", "/tmp/x")


@pytest.mark.parametrize(("version", "expected"), [((21, 0, 1), 0), ((25, 0, 2), 2)])
def test_only_new_javas_get_the_new_flags(version: tuple[int, ...], expected: int) -> None:
    paths = [Path("/x")] * 4
    command = config.command(paths[0], version, *paths, cores=2, memory=MEMORY)

    assert sum(word.startswith(("--sun", "--enable")) for word in command) == expected


@pytest.mark.parametrize(("cores", "frugal"), [(4, True), (8, False)])
def test_java_compiles_little_where_cores_are_few(cores: int, frugal: bool) -> None:
    command = config.command(Path("/java"), (25,), *[Path("/x")] * 4, cores=cores, memory=MEMORY)

    assert ("-XX:TieredStopAtLevel=1" in command) is frugal
    assert {"-Xmx8", "-XX:MaxDirectMemorySize=4"} <= set(command)


def test_the_reason_is_the_last_exception_of_the_first_worker_that_died(tmp_path: Path) -> None:
    log = tmp_path / "model_log.log"
    assert logs.failure(tmp_path, ["a-b:1"], {}) is None
    lines = [
        ("a-b_1", "Torch worker started."),
        ("a-b_1", "Backend worker process died."),
        ("a-b_1", "Traceback (most recent call last):"),
        ("a-b_1", '  File "x.py", line 1, in load'),
        ("c_2", "ValueError: of another model"),
        ("a-b_1", "KeyError: 'x'"),
        ("a-b_1", "The above exception was the direct cause of the following exception:"),
        ("a-b_1", "Traceback (most recent call last):"),
        ("a-b_1", "serving.errors.BundleError: model.pt must have SHA-256 1, got 2"),
    ]
    log.write_text("".join(f"2026-01-01T00:00:00,000 INFO  W-9000-{who}-stdout - {what}\n" for who, what in lines))

    assert logs.failure(tmp_path, ["c:2"], {}) is None
    assert logs.failure(tmp_path, ["c:2", "a-b:1"], {}) == (
        "a-b:1",
        "serving.errors.BundleError: model.pt must have SHA-256 1, got 2",
    )


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("model_log.log", "2026-01-01T00:00:00,000 INFO  W-9000-a_1-stdout - Backend worker process died."),
        ("ts_log.log", "2026-01-01T00:00:00,000 WARN  W-9000-a_1 x.Y - Load model failed: a, error: Worker died."),
    ],
)
def test_a_worker_that_died_without_a_word(log: str, line: str, tmp_path: Path) -> None:
    (tmp_path / log).write_text(line + "\n")

    assert logs.failure(tmp_path, ["a:1"], {}) == (
        "a:1",
        "a worker that died without a word (killed, or out of memory)",
    )
    assert logs.failure(tmp_path, ["a:1"], logs.sizes(tmp_path)) is None
    assert logs.failure(tmp_path, ["a:2"], {}) is None


def test_a_management_interface_that_does_not_answer(own_state: Path) -> None:
    server = record(own_state)

    with pytest.raises(
        ServerError, match=r"^http://127.0.0.1:1/models/x/all must answer with the state of the model, got "
    ):
        Management(server.management_url).describe("x")
    assert launch.status(own_state) is None


def test_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text("{}")

    with pytest.raises(ServerError, match=r"server\.json must name a server, got .*: remove it$"):
        load(tmp_path)


def test_a_process_is_seen_from_its_first_moment(tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 60", process.SERVER_CLASS]

    for _ in range(40):
        leader = process.spawn(command, os.environ, tmp_path, tmp_path / "output")
        assert process.is_running(leader)
        process.end(leader, grace_s=0)
        assert not process.is_running(leader)


def test_waiting_ends_in_peace_when_somebody_has_stopped_the_server(own_state: Path) -> None:
    server = record(own_state)
    launch.stop(own_state)

    launch.wait(server, own_state)


def test_another_program_with_the_servers_number_is_left_alone(own_state: Path) -> None:
    server = record(own_state, java=process.Identity(os.getpid(), process.started(os.getpid()) or 0))

    assert not process.is_running(server.java)
    assert launch.stop(own_state) == f"The server at {server.url} had ended already."


def damage(archive: Path, name: str) -> None:
    """Change one file of an archive, or add it."""
    with zipfile.ZipFile(archive) as file:
        contents = {name: b""} | {entry: file.read(entry) for entry in file.namelist()}
    with zipfile.ZipFile(archive, "w") as file:
        for entry, content in contents.items():
            file.writestr(entry, content + b"!" if entry == name else content)
