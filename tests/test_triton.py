"""Triton: the real `tritonserver` of nvidia-pytriton on repositories of ours, beside a real TorchServe."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
from conftest import LABELS, ROOT, encoded, serving, until
from tritonclient.utils import InferenceServerException
from tritonserver import Triton, end, entry, run, samples, wait_ready

from load_tests.peers.environments import locked_environment
from serving.__main__ import app
from serving.limits import DEFAULT_LIMITS
from serving.parameters import Options
from serving.predictor import Predictor
from serving.request_log import REQUESTS_FILE
from serving.tensors import TENSORS
from serving.torchserve.state import Server
from serving.triton.repository import write
from serving.triton.run import LIBRARY, has_library
from training.data import Sources
from training.datasets import load_dataset
from training.recipe import DataSpec

ATOL = 1e-6
PAGE = ROOT / "docs" / "triton.md"
MNIST = ROOT / "model_store" / "mnist-mda" / "1"


@pytest.fixture(scope="module")
def python() -> Path:
    """Of the environment with nvidia-pytriton, which is made when it is first needed."""
    if not has_library():
        pytest.skip(f"Triton's stub wants {LIBRARY}, the shared library of this Python")
    if sys.version_info >= (3, 13):
        pytest.skip("Triton's stub wants numpy 1, which there is up to Python 3.12")
    return locked_environment(ROOT / "serving" / "triton" / "server.txt", ROOT / "cache" / "triton", sys.executable)


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
    """An image that takes a while to decode, and none to send."""
    return encoded(np.zeros((4000, 4000), np.uint8))


def asked(client: Any, model: str, images: list[bytes], version: str = "", **request: Any) -> Any:
    """The tensors of an answer by HTTP or gRPC, by their names, less what Triton adds to the shape."""
    module = tritonclient.grpc if isinstance(client, tritonclient.grpc.InferenceServerClient) else tritonclient.http
    tensor = tensor_of(module, images)
    if "outputs" in request:
        request["outputs"] = [module.InferRequestedOutput(name) for name in request["outputs"]]
    result = client.infer(model, [tensor], model_version=version, **request)
    answer = result.get_response(as_json=True) if module is tritonclient.grpc else result.get_response()
    arrays = {output["name"]: result.as_numpy(output["name"]) for output in answer["outputs"]}
    return {name: array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array for name, array in arrays.items()}


def tensor_of(module: Any, images: list[bytes]) -> Any:
    tensor = module.InferInput("images", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=object).reshape(-1, 1))
    return tensor


def labels_later(client: tritonclient.grpc.InferenceServerClient, model: str, images: list[bytes]) -> list[Future[str]]:
    """The labels of images that are asked for at once, each by a request of its own."""

    def labelled(image: bytes) -> Future[str]:
        label = Future[str]()

        def answered(result: tritonclient.grpc.InferResult, error: InferenceServerException | None) -> None:
            if error is None:
                label.set_result(result.as_numpy("label").item().decode())
            else:
                label.set_exception(error)

        client.async_infer(model, [tensor_of(tritonclient.grpc, [image])], answered)
        return label

    return [labelled(image) for image in images]


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
    data = [*(b64encode(image).decode() for image in images), "iVBORw0KGgo?"]
    tensor = {"name": "images", "shape": [len(data), 1], "datatype": "BYTES", "data": data}
    url = f"http://127.0.0.1:{triton.http_port}/v2/models/tiny-mda/infer"
    answer = httpx.post(url, json={"inputs": [tensor]}, timeout=60, trust_env=False).json()

    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs["label"] == [*texts(asked(triton.http, "tiny-mda", images)["label"]), ""]
    assert "image must be base64 without line breaks, got 'iVBORw0KGgo?'" in outputs["error"][-1]


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


@pytest.fixture
def unasked(triton: Triton, make_bundle: Callable[..., Path]) -> Iterator[Callable[[str, str], str]]:
    """Loads a model that nobody has asked, so that what Triton counts, later than it answers, is of one test."""
    loaded = []

    def load(name: str, kind: str) -> str:
        write([entry(make_bundle(name, kind), batch_size=8)], triton.repository)
        triton.http.load_model(name)
        loaded.append(name)
        return name

    yield load
    for name in loaded:
        triton.http.unload_model(name)
        shutil.rmtree(triton.repository / name)


def test_many_requests_are_answered_by_one_call(triton: Triton, unasked: Callable[[str, str], str]) -> None:
    model = unasked("crowded", "mda")
    rng = np.random.default_rng(17)
    noise = [encoded(rng.integers(0, 255, (320, 320), np.uint8)) for _ in range(64)]
    client = triton.grpc
    labels = labels_later(client, model, noise * 4)

    def counted(what: str) -> int:
        return triton.http.get_inference_statistics(model)["model_stats"][0][what]

    assert [label.result(120) for label in labels] == texts(asked(triton.http, model, noise)["label"]) * 4
    until(lambda: counted("inference_count") == 256 + 64)
    assert counted("execution_count") < 128, "256 requests at once, by batches of 8, and one of 64 images"


def test_a_flood_is_answered(triton: Triton, images: list[bytes], large: bytes) -> None:
    expected = texts(asked(triton.http, "tiny-mda", images)["label"])
    client = triton.grpc
    [slow, *labels] = labels_later(client, "tiny-mda", [large, *images * 50])

    assert [label.result(120) for label in labels] == expected * 50
    assert slow.result(120) in LABELS


def test_our_metrics_stand_on_tritons_page(
    triton: Triton, server: Server, images: list[bytes], unasked: Callable[[str, str], str]
) -> None:
    model = unasked("counted", "typical")
    found = asked(triton.http, model, [*images, b"text"])

    def count(name: str, **more: str) -> float:
        labels = {("model", model), ("version", "1"), *more.items()}
        of_model = triton.metrics().get(f"discriminant_{name}", {})
        return sum(value for series, value in of_model.items() if labels <= set(series))

    until(lambda: count("images_total") == len(images))
    until(lambda: count("image_errors_total", code="unsupported_image_type") == 1)
    until(lambda: count("confidence_count") == len(images))
    until(lambda: count("components_total") == len(images))
    density = found["log_density"][:-1].sum()
    until(lambda: count("log_density_nats_sum") == pytest.approx(density, rel=1e-4))
    names = texts(found["component_name"])
    for name in set(names) - {""}:
        assert count("components_total", component_name=name) == names.count(name)
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
        client = server.grpc
        labels = labels_later(client, "tiny-mda", [large] * 2)
        until(lambda: server.is_waited_for() or all(label.done() for label in labels))
        server.process.send_signal(signal.SIGTERM)
        assert all(label.result(60) in LABELS for label in labels)
        assert server.process.wait(60) == 0
    finally:
        end(server)
