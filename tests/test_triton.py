"""Triton: the real `tritonserver` of nvidia-pytriton on repositories of ours, beside a real TorchServe."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
import skimage.data
import tritonclient.grpc
import tritonclient.http
import typer
from conftest import COMPONENT_NAMES, LABELS, ROOT, encoded, free_port, gmm_parameters, serving, until, with_int8
from google.protobuf import text_format
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from load_tests.peers.environments import locked_environment
from serving.__main__ import app
from serving.bundle import Bundle
from serving.errors import ServingError
from serving.limits import DEFAULT_LIMITS
from serving.parameters import Options
from serving.predictor import Predictor
from serving.request_log import REQUESTS_FILE
from serving.settings import DEFAULT_SETTINGS, WorkerSettings, changed
from serving.tensors import TENSORS
from serving.torchserve.archive import package
from serving.torchserve.state import Server
from serving.triton.code import needed
from serving.triton.config import configuration
from serving.triton.repository import Entry, write
from serving.triton.run import LIBRARY, has_library
from serving.triton.served import Served
from training.data import Sources
from training.datasets import load_dataset
from training.recipe import DataSpec

RUN = ROOT / "serving" / "triton" / "run.py"
START_S = 120
READY = "/v2/health/ready"
ATOL = 1e-6
PAGE = ROOT / "docs" / "triton.md"
MNIST = ROOT / "model_store" / "mnist-mda" / "1"


@dataclass(frozen=True)
class Triton:
    """A `tritonserver` that runs."""

    process: subprocess.Popen[bytes]
    repository: Path
    log: Path
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def http(self) -> tritonclient.http.InferenceServerClient:
        return tritonclient.http.InferenceServerClient(
            f"127.0.0.1:{self.http_port}", network_timeout=120, connection_timeout=120
        )

    @property
    def grpc(self) -> tritonclient.grpc.InferenceServerClient:
        return tritonclient.grpc.InferenceServerClient(
            f"127.0.0.1:{self.grpc_port}", channel_args=[("grpc.enable_http_proxy", 0)]
        )

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.http_port}{path}", timeout=60, trust_env=False)

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=60, trust_env=False).text
        return samples(text)


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            found.setdefault(one.name, {})[tuple(sorted(one.labels.items()))] = one.value
    return found


@pytest.fixture(scope="module")
def python() -> Path:
    """Of the environment with nvidia-pytriton, which is made when it is first needed."""
    if not has_library():
        pytest.skip(f"Triton's stub wants {LIBRARY}, the shared library of this Python")
    if sys.version_info >= (3, 13):
        pytest.skip("Triton's stub wants numpy 1, which there is up to Python 3.12")
    return locked_environment(ROOT / "serving" / "triton" / "server.txt", ROOT / "cache" / "triton", sys.executable)


def run(python: Path, repository: Path, folder: Path, *options: str) -> Triton:
    """Begin a `tritonserver`; nothing of the project is on its path."""
    ports, log = [free_port() for _ in range(3)], folder / "triton.log"
    flags = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    with log.open("wb") as output:
        command = [str(python), str(RUN), str(repository), *flags, *options]
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    return Triton(process, repository, log, *ports)


def wait_ready(server: Triton) -> None:
    def is_ready() -> bool:
        assert server.process.poll() is None, server.log.read_text(errors="replace")[-3000:]
        try:
            return server.get(READY).status_code == 200
        except httpx.TransportError:
            return False

    until(is_ready, START_S)


def end(server: Triton) -> None:
    server.process.terminate()
    try:
        server.process.wait(60)
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def moved(server: Server, state: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of what the shared TorchServe serves, made by one command; the logs of its requests lie beside."""
    folder = tmp_path_factory.mktemp("moved")
    done = serving(
        "triton", "--from-state", state, "--repository", folder / "models", "--request-log", folder / "log", check=True
    )
    of_torch = "tiny-mda-ts version 1: float32 by torch, which must be there, 1 instance of 1 thread on the CPU\n"
    assert of_torch in done.stdout
    shutil.rmtree(folder / "models" / "tiny-mda-ts")  # for there is no torch here
    serving("triton", MNIST, "--repository", folder / "models", "--threads", 1, check=True)
    return folder / "models"


@pytest.fixture(scope="module")
def triton(python: Path, moved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server of that repository, which takes other models and versions while it runs."""
    folder = tmp_path_factory.mktemp("triton")
    server = run(python, moved, folder, "--model-control-mode=explicit", "--load-model=*")
    try:
        wait_ready(server)
        yield server
    finally:
        end(server)


@pytest.fixture(scope="module")
def pictures(images: list[bytes]) -> list[bytes]:
    """Digits of MNIST, a photo as JPEG and as WebP, and the tiny images."""
    digits = load_dataset(DataSpec(name="mnist"), Sources()).images[:4, 0].numpy()
    photo = skimage.data.astronaut()
    return [*map(encoded, digits), encoded(photo, "JPEG"), encoded(photo, "WEBP"), *images]


@pytest.fixture(scope="module")
def large() -> bytes:
    """An image that takes a while to decode."""
    rng = np.random.default_rng(17)
    return encoded(rng.integers(0, 2, (3000, 3000), dtype=np.uint8) * 255, compress_level=1)


def asked(client: Any, model: str, images: list[bytes], version: str = "", **request: Any) -> Any:
    """The tensors of an answer by HTTP or gRPC, by their names, less what Triton adds to the shape."""
    module = tritonclient.grpc if isinstance(client, tritonclient.grpc.InferenceServerClient) else tritonclient.http
    tensor = module.InferInput("images", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=object).reshape(-1, 1))
    if "outputs" in request:
        request["outputs"] = [module.InferRequestedOutput(name) for name in request["outputs"]]
    result = client.infer(model, [tensor], model_version=version, **request)
    answer = result.get_response(as_json=True) if module is tritonclient.grpc else result.get_response()
    arrays = {output["name"]: result.as_numpy(output["name"]) for output in answer["outputs"]}
    return {name: array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array for name, array in arrays.items()}


def texts(array: Any) -> list[str]:
    return [text.decode() for text in array]


def by_torchserve(server: Server, model: str, images: list[bytes], **request: Any) -> dict[str, Any]:
    tensor = {
        "name": "images",
        "shape": [len(images)],
        "datatype": "BYTES",
        "data": [b64encode(image).decode() for image in images],
    }
    url = f"{server.url}/v2/models/{model}/infer"
    answer = httpx.post(url, json={"inputs": [tensor], **request}, timeout=60, trust_env=False).json()
    return {one["name"]: np.reshape(one["data"], one["shape"]) for one in answer["outputs"]}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", ["tiny-mda", "tiny-softmax", "tiny-typical"])
def test_answers_are_torchserves(
    triton: Triton, server: Server, pictures: list[bytes], model: str, protocol: str
) -> None:
    parameters = {"coverage": 0.8} if model == "tiny-typical" else {}
    found = asked(getattr(triton, protocol), model, pictures, parameters=parameters)
    expected = by_torchserve(server, model, pictures, parameters=parameters)

    assert set(found) == set(expected) | {"error"}
    assert texts(found.pop("error")) == [""] * len(pictures)
    for name, array in found.items():
        if TENSORS[name].datatype == "BYTES":
            assert texts(array) == expected[name].tolist()
        else:
            assert array == pytest.approx(expected[name], abs=ATOL, rel=ATOL), name


def test_digits_and_a_photo_are_answered_as_by_the_predictor(triton: Triton, pictures: list[bytes]) -> None:
    found = asked(triton.grpc, "mnist-mda", pictures, parameters={"coverage": 0.9})

    for n, answer in enumerate(Predictor.open(MNIST, threads=1).predict(pictures, Options(coverage=0.9))):
        assert isinstance(answer, dict)
        assert found["label"][n].decode() == answer["label"]
        assert found["posterior"][n] == pytest.approx(list(answer["probabilities"].values()), abs=ATOL)
        assert found["typicality"][n] == pytest.approx(answer["typicality"], abs=ATOL)
        possible = [label for label, is_in in zip(answer["probabilities"], found["possible"][n], strict=True) if is_in]
        assert sorted(possible) == sorted(answer["labels_at"]["set"])


def test_the_example_of_the_page_runs(triton: Triton, pictures: list[bytes], tmp_path: Path) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "seven.png").write_bytes(pictures[0])
    (tmp_path / "broken.png").write_bytes(pictures[0][:99])
    script = example.replace("127.0.0.1:8000", f"127.0.0.1:{triton.http_port}")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    label = asked(triton.http, "mnist-mda", pictures[:1])["label"][0]
    assert done.stdout.startswith(f"[[{label}]\n [b'']]"), done.stderr
    assert '"code":"undecodable_image"' in done.stdout


@pytest.mark.parametrize("line", re.findall(r"^python -m serving (.*?)(?: *#.*)?$", PAGE.read_text(), re.MULTILINE))
def test_commands_of_the_page_parse(line: str) -> None:
    name, *arguments = shlex.split(line)
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    command = group.get_command(typer.Context(group), name)

    assert command is not None
    assert command.make_context(name, arguments).command is command


def test_features_come_by_name(triton: Triton, server: Server, pictures: list[bytes]) -> None:
    found = asked(triton.grpc, "tiny-mda", pictures, outputs=["features", "error"])

    assert set(found) == {"features", "error"}
    expected = by_torchserve(server, "tiny-mda", pictures, outputs=[{"name": "features"}])["features"]
    assert found["features"] == pytest.approx(expected, abs=ATOL, rel=ATOL)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_whole_answer_is_there_too(triton: Triton, server: Server, pictures: list[bytes], protocol: str) -> None:
    priors = dict(zip(LABELS, np.full(len(LABELS), 1 / len(LABELS)).tolist(), strict=True))
    parameters = {"top_k": 2, "return": ["probabilities"], "accept": {"typicality": 0.5}, "priors": priors}
    as_text = {name: json.dumps(value) if name != "top_k" else value for name, value in parameters.items()}
    broken = [*pictures, b"no image"]
    found = asked(getattr(triton, protocol), "tiny-typical", broken, outputs=["answer"], parameters=as_text)

    body = {"instances": [{"b64": b64encode(image).decode()} for image in broken], "parameters": parameters}
    url = f"{server.url}/predictions/tiny-typical"
    expected = httpx.post(url, json=body, timeout=60, trust_env=False).json()["predictions"]
    for one, other in zip(map(json.loads, texts(found["answer"])), expected, strict=True):
        assert list(one) == list(other)
        assert one.get("flags") == other.get("flags")
        assert one.get("error") == other.get("error")
        assert one.get("probabilities", {}) == pytest.approx(other.get("probabilities", {}), abs=ATOL)


def test_json_holds_base64(triton: Triton, images: list[bytes]) -> None:
    data = [b64encode(image).decode() for image in images]
    tensor = {"name": "images", "shape": [len(images), 1], "datatype": "BYTES", "data": data}
    url = f"http://127.0.0.1:{triton.http_port}/v2/models/tiny-mda/infer"
    answer = httpx.post(url, json={"inputs": [tensor]}, timeout=60, trust_env=False).json()

    labels = next(output["data"] for output in answer["outputs"] if output["name"] == "label")
    assert labels == texts(asked(triton.http, "tiny-mda", images)["label"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_error_is_its_images_own(triton: Triton, server: Server, images: list[bytes], protocol: str) -> None:
    wide = encoded(np.zeros((1, DEFAULT_LIMITS.max_side + 1), dtype=np.uint8))
    batch = [images[0], images[1][:60], images[2], b"text", wide, b"", images[3]]
    found = asked(getattr(triton, protocol), "tiny-typical", batch, parameters={"coverage": 0.8})
    alone = asked(triton.http, "tiny-typical", [images[0], images[2], images[3]], parameters={"coverage": 0.8})

    body = {"instances": [{"b64": b64encode(image).decode()} for image in batch]}
    answers = httpx.post(f"{server.url}/predictions/tiny-typical", json=body, timeout=60, trust_env=False).json()
    expected = [answer.get("error") for answer in answers["predictions"]]
    errors = [json.loads(text) if text else None for text in texts(found["error"])]
    assert errors == expected
    codes = [error["code"] for error in errors if error]
    assert codes == ["undecodable_image", "unsupported_image_type", "image_too_large", "undecodable_image"]
    good = [n for n, error in enumerate(errors) if error is None]
    for name, array in alone.items():
        if array.dtype == object:
            assert texts(found[name][good]) == texts(array)
        else:
            assert found[name][good] == pytest.approx(array, abs=ATOL, rel=ATOL)
    assert (found["label"][1], found["component"][1], found["typicality"][1]) == (b"", -1, 0)
    assert not found["possible"][1].any()
    assert np.isfinite(found["log_density"]).all()


def test_who_does_not_look_at_errors_gets_the_first_one_as_the_requests(triton: Triton, images: list[bytes]) -> None:
    message = r"unsupported_image_type: images\[1\]: image must be PNG"
    with pytest.raises(InferenceServerException, match=message) as by_http:
        asked(triton.http, "tiny-mda", [images[0], b"text"], outputs=["label"])
    with pytest.raises(InferenceServerException, match=message) as by_grpc:
        asked(triton.grpc, "tiny-mda", [images[0], b"text"], outputs=["label"])

    assert (by_http.value.status(), by_grpc.value.status()) == ("400", "StatusCode.INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"parameters": {"other": 1}}, "bad_parameter: parameter must be one of top_k, return, coverage, "),
        ({"parameters": {"coverage": 2}}, "bad_parameter: coverage must be a number above 0 and below 1, got 2"),
        ({"parameters": {"return": "["}}, "bad_parameter: return must be a number, or JSON as text, got '['"),
        ({"parameters": {"coverage": 0.8}}, "bad_parameter: coverage must be left out, as tiny-mda has no held-out"),
        ({"outputs": ["logits"]}, "unexpected inference output 'logits'"),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    triton: Triton, images: list[bytes], request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        asked(triton.http, "tiny-mda", images, **request_)

    assert message in str(caught.value)
    assert caught.value.status() == "400"


def test_a_prediction_set_by_name_needs_a_coverage(triton: Triton, images: list[bytes]) -> None:
    with pytest.raises(InferenceServerException, match="bad_request: outputs must name possible only where parameters"):
        asked(triton.http, "tiny-typical", images, outputs=["possible"])

    found = asked(triton.http, "tiny-typical", images, outputs=["possible"], parameters={"coverage": "0.8"})
    assert found["possible"].shape == (len(images), len(LABELS))


def test_too_many_images_or_bytes_are_refused(triton: Triton, images: list[bytes]) -> None:
    with pytest.raises(InferenceServerException, match="batch-size must be <= 256"):
        asked(triton.http, "tiny-mda", images[:1] * 257)
    with pytest.raises(InferenceServerException, match="image_too_large: request must have at most 16777216 bytes, "):
        asked(triton.http, "tiny-mda", [bytes(9 * 2**20)] * 2)

    assert len(asked(triton.http, "tiny-mda", images[:1] * 256)["label"]) == 256


def test_many_requests_are_answered_by_one_call(triton: Triton, images: list[bytes], large: bytes) -> None:
    def executions() -> tuple[int, int]:
        [model] = triton.http.get_inference_statistics("tiny-mda")["model_stats"]
        return model["inference_count"], model["execution_count"]

    before = executions()
    expected = texts(asked(triton.http, "tiny-mda", images)["label"])
    until(lambda: executions() != before)  # they are counted after the answer
    answers, calls = executions()
    with ThreadPoolExecutor(34) as threads:
        slow = [threads.submit(asked, triton.grpc, "tiny-mda", [large]) for _ in range(2)]
        until(lambda: is_waited_for(triton) or all(call.done() for call in slow))
        waiting = [threads.submit(asked, triton.grpc, "tiny-mda", [image]) for image in images * 4]
        labels = [texts(call.result()["label"])[0] for call in waiting]

    assert labels == expected * 4
    until(lambda: executions()[0] == answers + 34)
    assert executions()[1] - calls < 20, "32 requests that wait for another one are few batches"


def is_waited_for(triton: Triton) -> bool:
    """Whether a request waits in a queue."""
    return sum(triton.metrics()["nv_inference_pending_request_count"].values()) > 0


def test_a_flood_is_answered(triton: Triton, images: list[bytes], large: bytes) -> None:
    client, outcomes = triton.grpc, list[Exception | None]()
    tensor = tritonclient.grpc.InferInput("images", [1, 1], "BYTES")
    for image in [large, *images * 50]:
        tensor.set_data_from_numpy(np.array([[image]], dtype=object))
        client.async_infer("tiny-mda", [tensor], lambda result, error: outcomes.append(error))
    until(lambda: len(outcomes) == 1 + 50 * len(images))

    assert set(outcomes) == {None}


def test_our_metrics_stand_on_tritons_page(triton: Triton, server: Server, images: list[bytes]) -> None:
    labels = (("model", "tiny-typical"), ("version", "1"))

    def count(name: str, **more: str) -> float:
        of_model = triton.metrics().get(f"discriminant_{name}", {})
        return sum(value for series, value in of_model.items() if {*labels, *more.items()} <= set(series))

    before = {
        name: count(name) for name in ("images_total", "confidence_count", "confidence_bucket", "components_total")
    }
    errors_before = count("image_errors_total", code="unsupported_image_type")
    density_before = count("log_density_nats_sum")
    found = asked(triton.http, "tiny-typical", [*images, b"text"])

    until(lambda: count("images_total") == before["images_total"] + len(images))
    until(lambda: count("image_errors_total", code="unsupported_image_type") == errors_before + 1)
    until(lambda: count("confidence_count") == before["confidence_count"] + len(images))
    until(lambda: count("components_total") == before["components_total"] + len(images))
    added = found["log_density"][:-1].sum()
    until(lambda: count("log_density_nats_sum") == pytest.approx(density_before + added, rel=1e-4))
    assert count("components_total", component_name=COMPONENT_NAMES["noise"][1]) >= 0
    by_torchserve(server, "tiny-typical", images)
    theirs = samples(httpx.get(server.metrics_url, timeout=60, trust_env=False).text)
    ours = {name for name in triton.metrics() if name.startswith("discriminant_")}
    of_workers = {"discriminant_workers", "discriminant_workers_ready"}  # for Triton does not know when one has died
    assert {name for name in theirs if name.startswith("discriminant_")} - of_workers <= ours


def test_each_request_is_logged(triton: Triton, moved: Path, images: list[bytes]) -> None:
    asked(triton.http, "tiny-mda", [images[0], b""], request_id="seven")
    log = moved.parent / "log" / REQUESTS_FILE

    def lines() -> list[dict[str, Any]]:
        text = log.read_text() if log.exists() else ""
        return [entry for entry in map(json.loads, text.splitlines()) if entry["request_id"] == "seven"]

    until(lambda: len(lines()) == 1)
    [entry] = lines()
    assert (entry["status"], entry["images"], entry["errors"]) == (200, 2, ["undecodable_image"])


def test_a_new_version_is_added_to_a_running_server_and_taken_back_without_a_failed_request(
    triton: Triton, make_bundle: Callable[..., Path], images: list[bytes]
) -> None:
    names = tuple(f"new {label}" for label in LABELS)
    first, second = make_bundle("versions"), make_bundle("versions", version=2, labels=names)
    repository, client = triton.repository, triton.http
    write([entry(first)], repository)
    client.load_model("versions")
    old = texts(asked(client, "versions", images)["label"])
    new = [f"new {label}" for label in old]
    with asked_all_the_while(triton, "versions", images) as answers:
        done = serving("triton", second, "--repository", repository, "--threads", 1, check=True)
        assert "versions version 2: float32, " in done.stdout
        client.load_model("versions")
        assert texts(asked(client, "versions", images)["label"]) == new
        assert texts(asked(triton.grpc, "versions", images, version="1")["label"]) == old
        assert texts(asked(triton.grpc, "versions", images, version="2")["label"]) == new

        shutil.rmtree(repository / "versions" / "2")
        client.load_model("versions")
        assert texts(asked(client, "versions", images)["label"]) == old
    assert answers
    assert all(answer in (old, new) for answer in answers), "an exception stands where an answer failed"


@contextmanager
def asked_all_the_while(triton: Triton, model: str, images: list[bytes]) -> Iterator[list[object]]:
    """Ask for the default version while the block runs; the labels of each answer, or what was raised."""
    answers, ended = list[object](), Event()

    def ask() -> None:
        client = triton.http
        while not ended.is_set():
            try:
                answers.append(texts(asked(client, model, images)["label"]))
            except InferenceServerException as exc:
                answers.append(exc)

    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask)
        try:
            yield answers
        finally:
            ended.set()
        asking.result()


def test_a_damaged_file_keeps_a_model_from_being_served(
    triton: Triton, make_bundle: Callable[..., Path], images: list[bytes]
) -> None:
    write([entry(make_bundle("damaged"))], triton.repository)
    file = triton.repository / "damaged" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InferenceServerException, match=r"load failed for model 'damaged': .* must have SHA-256"):
        triton.http.load_model("damaged")

    assert not triton.http.is_model_ready("damaged")
    assert triton.http.is_model_ready("tiny-mda")
    [reason] = [one["reason"] for one in triton.http.get_model_repository_index() if one["name"] == "damaged"]
    assert f"{file.relative_to(triton.repository)} must have SHA-256 " in reason
    assert "the file was changed or damaged" in reason
    shutil.rmtree(file.parents[1])


def test_what_was_accepted_is_answered_when_it_is_told_to_end(
    python: Path, bundle_dir: Path, large: bytes, tmp_path: Path
) -> None:
    write([entry(bundle_dir)], tmp_path / "models")
    server = run(python, tmp_path / "models", tmp_path)
    try:
        wait_ready(server)
        with ThreadPoolExecutor(2) as threads:
            calls = [threads.submit(asked, server.grpc, "tiny-mda", [large]) for _ in range(2)]
            until(lambda: is_waited_for(server) or all(call.done() for call in calls))
            server.process.send_signal(signal.SIGTERM)
            assert [texts(call.result(60)["error"]) for call in calls] == [[""]] * 2
        assert server.process.wait(60) == 0
    finally:
        end(server)


def entry(bundle: Path, device: Any = "cpu", instances: int = 1, **settings: Any) -> Entry:
    return Entry(
        bundle, Served(settings=changed(DEFAULT_SETTINGS, threads=1, **settings), device=device, instances=instances)
    )


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_the_configuration_says_what_was_asked_for(typical_dir: Path, tmp_path: Path) -> None:
    serving(
        "triton", typical_dir, "--repository", tmp_path / "models", "--workers", 3, "--batch-size", 16,
        "--max-instances", 64, check=True,
    )  # fmt: skip

    config = parsed((tmp_path / "models" / "tiny-typical" / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("tiny-typical", "python", 64)
    [group] = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, 3)
    assert list(config.dynamic_batching.preferred_batch_size) == [16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert not config.dynamic_batching.HasField("default_queue_policy"), "with any, requests wait for half a second"
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    outputs = {output.name: output for output in config.output}
    assert list(outputs) == [*TENSORS, "error", "answer"]
    assert list(outputs["responsibilities"].dims) == [len(LABELS), gmm_parameters()["means"].shape[1]]
    assert outputs["possible"].data_type == model_config_pb2.TYPE_BOOL
    settings = Served.read(tmp_path / "models" / "tiny-typical" / "1").settings
    assert settings == WorkerSettings(
        workers=3, batch_size=16, limits=DEFAULT_LIMITS.model_copy(update={"max_instances": 64})
    )


def test_a_machine_with_gpus_gets_its_own_configuration(bundle_dir: Path, softmax_dir: Path, tmp_path: Path) -> None:
    done = serving("triton", bundle_dir, "--repository", tmp_path / "models", "--device", "gpu", check=True)

    assert "tiny-mda version 1: float32, 2 instances on each GPU" in done.stdout
    [group] = parsed((tmp_path / "models" / "tiny-mda" / "config.pbtxt").read_text()).instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 2)
    assert "onnxruntime-gpu==" in (tmp_path / "models" / "requirements.txt").read_text()
    write([entry(softmax_dir)], tmp_path / "models")
    assert "onnxruntime-gpu==" in (tmp_path / "models" / "requirements.txt").read_text()


def test_versions_of_other_shapes_share_a_configuration(bundle_dir: Path, softmax_dir: Path) -> None:
    mixture, softmax = (Bundle.load(folder).manifest for folder in (bundle_dir, softmax_dir))
    more = mixture.model_copy(update={"labels": (*LABELS, "e"), "head": mixture.head.model_copy(update={"classes": 5})})
    one, two = (entry(bundle_dir, instances=n, batch_size=n).served for n in (1, 2))

    config = parsed(configuration({1: (softmax, two), 2: (mixture, one), 10: (more, two)}))
    outputs = {output.name: list(output.dims) for output in config.output}
    assert (outputs["posterior"], outputs["responsibilities"]) == ([-1], [-1, 2])
    assert (config.instance_group[0].count, list(config.dynamic_batching.preferred_batch_size)) == (2, [2])


def test_a_repository_holds_its_bundles_and_the_way_back(typical_dir: Path, tmp_path: Path) -> None:
    write([entry(typical_dir)], tmp_path / "models")

    there = package(tmp_path / "models" / "tiny-typical" / "1", model_store=tmp_path / "there")
    here = package(typical_dir, model_store=tmp_path / "here")
    assert there.read_bytes() == here.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "models", "there"]


def test_the_code_in_it_is_what_a_model_needs() -> None:
    names = set(needed())

    assert {"serving", "serving.triton.adapter", "serving.data_plane", "serving.decode"} <= names
    assert not [name for name in names if name.startswith(("serving.torchserve", "serving.batch", "serving.__main__"))]


def test_a_version_that_is_there_is_only_replaced_when_told_to(
    bundle_dir: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    write([entry(bundle_dir)], repository)
    other = make_bundle("tiny-mda", labels=("a", "b", "c", "d"))
    with pytest.raises(ServingError, match=r"tiny-mda must not hold version 1 yet: replace it with --replace$"):
        write([entry(make_bundle("another")), entry(other)], repository)

    assert not (repository / "another").exists()
    assert Bundle.load(repository / "tiny-mda" / "1").manifest.labels == LABELS
    write([entry(other)], repository, replace=True)
    assert Bundle.load(repository / "tiny-mda" / "1").manifest.labels == ("a", "b", "c", "d")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_what_cannot_be_served_leaves_nothing(
    bundle_dir: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "tiny-mda" / "1"
    shutil.copytree(bundle_dir, damaged)
    (damaged / "model.onnx").write_bytes(b"")
    with pytest.raises(ServingError, match=r"model\.onnx must have SHA-256 "):
        write([entry(make_bundle("good")), entry(damaged)], tmp_path / "models")
    with pytest.raises(ServingError, match="each version must be there once, got tiny-mda version 1 twice"):
        write([entry(bundle_dir), entry(bundle_dir)], tmp_path / "models")
    with pytest.raises(ServingError, match="precision int8 must run on the CPU, got gpu"):
        write([entry(with_int8(bundle_dir, tmp_path / "int8" / "1"), "gpu", precision="int8")], tmp_path / "models")

    assert not (tmp_path / "models").exists()


def test_a_model_of_somebody_else_is_left_alone(bundle_dir: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "models" / "tiny-mda" / "1"
    theirs.mkdir(parents=True)
    with pytest.raises(ServingError, match="tiny-mda must be a model that this command has written, got another one"):
        write([entry(bundle_dir)], tmp_path / "models", replace=True)

    assert list(theirs.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "bundles, or the state folder of a server, must be named, got both or neither"),
        (("{bundle}", "--from-state", "{tmp}"), "bundles, or the state folder of a server, must be named, got both"),
        (("--from-state", "{tmp}/none"), "a server must run in {tmp}/none, got none: start one, or name bundles"),
        (("{tmp}/nothing",), "{tmp}/nothing/bundle.json must exist"),
        (("{bundle}", "--repository", "{tmp}/file"), "--repository must be a folder, got "),
        (("{bundle}", "--precision", "int8"), "precision of {bundle} must be float32, got int8"),
    ],
)
def test_commands_that_are_refused(bundle_dir: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "file").touch()
    places = {"bundle": bundle_dir, "tmp": tmp_path}
    done = serving("triton", "--repository", tmp_path / "models", *(one.format(**places) for one in arguments))

    assert done.returncode == 1
    assert message.format(**places) in error_text(done)
    assert not (tmp_path / "models").exists()


def error_text(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.replace("\n", "")
