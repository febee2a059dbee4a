"""A server of its own under legal requests that cost all they can: answers of megabytes, and crowds of images."""

import json
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import described, encoded, export_module, golden_images, manifest_fields, until, workers_of

from serving.bundle import staged, write_manifest
from serving.settings import WorkerSettings
from serving.torchserve import launch
from serving.torchserve.archive import package
from serving.torchserve.state import Server

CLASSES, COMPONENTS, DIM = 100, 60, 4
INSTANCES = 256
SMALL = encoded(np.zeros((8, 8), dtype=np.uint8))
CROWD = 12


def wide_weights() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.normal(size=(DIM, CLASSES)), rng.normal(size=(DIM, CLASSES * COMPONENTS))


def wide_answers(images: np.ndarray) -> dict[str, np.ndarray]:
    z = images.reshape(len(images), -1)[:, :DIM] / 255
    classes, components = (np.exp(z @ weights) for weights in wide_weights())
    components = components.reshape(-1, CLASSES, COMPONENTS)
    return {
        "posterior": classes / classes.sum(1, keepdims=True),
        "responsibilities": components / components.sum(2, keepdims=True),
        "log_density": z.sum(1),
        "features": z,
    }


def wide_module() -> Any:
    import torch

    of_classes, of_components = (torch.tensor(weights, dtype=torch.float32) for weights in wide_weights())

    class Wide(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            z = images.float().flatten(1)[:, :DIM] / 255
            components = (z @ of_components).unflatten(1, (CLASSES, COMPONENTS))
            return torch.softmax(z @ of_classes, 1), torch.softmax(components, 2), z.sum(1), z

    return Wide().eval()


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of many classes and components, whose answers are long."""
    target = tmp_path_factory.mktemp("bundles") / "wide" / "1"
    answers = wide_answers(golden_images())
    fields = manifest_fields("wide", "mda", 1, tuple(answers))
    fields |= {"labels": [f"class {n:03}" for n in range(CLASSES)]}
    fields |= {"head": {"kind": "mda", "classes": CLASSES, "dim": DIM, "components": COMPONENTS}}
    with staged(target) as stage:
        export_module(wide_module(), list(answers), stage)
        np.savez(stage / "golden.npz", images=golden_images(), **answers)
        write_manifest(stage, **fields)
    return target


@pytest.fixture(scope="module")
def served(bundle_dir: Path, wide_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store, state = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("attacks") / "state"
    for bundle in (bundle_dir, wide_dir):
        package(bundle, model_store=store, settings=WorkerSettings(workers=1, threads=1))
    yield launch.start(model_store=store, state=state, device="cpu", port=0)
    launch.stop(state, grace_s=0, drain_s=0)


@pytest.fixture(autouse=True)
def same_workers(served: Server) -> Iterator[None]:
    """No attack may cost a worker its life."""
    before = [worker["pid"] for model in served.models for worker in workers_of(served, model)]
    yield
    assert [worker["pid"] for model in served.models for worker in workers_of(served, model)] == before


def post(server: Server, path: str, **request: Any) -> httpx.Response:
    response = httpx.post(f"{server.url}{path}", timeout=60, trust_env=False, **request)
    described(response)
    return response


def instances(image: bytes, count: int = INSTANCES, **parameters: Any) -> dict[str, Any]:
    return {"instances": [{"b64": b64encode(image).decode()}] * count, "parameters": parameters}


def counted(server: Server, status: int) -> bool:
    return f'discriminant_requests_total{{model="wide",status="{status}",' in httpx.get(server.metrics_url).text


def test_answers_of_more_bytes_than_allowed_are_refused_before_they_are_made(served: Server) -> None:
    refused = post(served, "/predictions/wide", json=instances(SMALL))
    brief = post(served, "/predictions/wide", json=instances(SMALL, **{"return": []}))
    message = refused.json()["error"]["message"]
    most = int(message.split("send at most ")[1].split()[0])
    longest = post(served, "/predictions/wide", json=instances(SMALL, most))

    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "answer_too_large")
    assert message.startswith("answers of one request must have at most 16777216 bytes, got 256 images of up to ")
    assert (brief.status_code, len(brief.json()["predictions"])) == (200, INSTANCES)
    assert longest.status_code == 200
    assert 2**24 / 2 < len(longest.content) <= 2**24
    until(lambda: counted(served, 413) and counted(served, 200), 10)
    assert not counted(served, 500)


def test_so_are_tensors(served: Server) -> None:
    tensor = {"name": "images", "shape": [INSTANCES], "datatype": "BYTES"}
    tensor |= {"data": [b64encode(SMALL).decode()] * INSTANCES}

    refused = post(served, "/v2/models/wide/infer", json={"inputs": [tensor]})
    brief = post(served, "/v2/models/wide/infer", json={"inputs": [tensor], "outputs": [{"name": "label"}]})
    assert (refused.status_code, refused.json()["error"][:16]) == (413, "answer_too_large")
    assert brief.status_code == 200


def test_a_name_as_long_as_an_answer_may_be_does_no_harm(served: Server) -> None:
    tensor = {"name": "images", "shape": [1], "datatype": "BYTES", "data": [b64encode(SMALL).decode()]}

    refused = post(served, "/v2/models/wide/infer", json={"inputs": [tensor], "id": "i" * (2**24 - 1000)})
    message = f"bad_request: id must be text of at most 1024 characters, got {2**24 - 1000}"
    assert (refused.status_code, refused.json()["error"]) == (400, message)


def test_a_crowd_is_refused_beyond_the_budget_and_nobody_else_is(served: Server) -> None:
    heavy = json.dumps(instances(encoded(np.zeros((300, 300), dtype=np.uint8)))).encode()
    crowd_is_done = threading.Event()
    lone: list[int] = []

    def ask_alone() -> None:
        while not crowd_is_done.is_set():
            lone.append(post(served, "/predictions/tiny-mda", content=SMALL).status_code)
            time.sleep(0.01)

    aside = threading.Thread(target=ask_alone)
    aside.start()
    with ThreadPoolExecutor(CROWD) as pool:
        ends = list(pool.map(lambda _: post(served, "/predictions/tiny-mda", content=heavy), range(3 * CROWD)))
    crowd_is_done.set()
    aside.join(60)

    counts = Counter(response.status_code for response in ends)
    assert set(counts) == {200, 503}
    assert {response.json()["error"]["code"] for response in ends if response.status_code == 503} == {"overloaded"}
    assert {response.headers["retry-after"] for response in ends if response.status_code == 503} == {"1"}
    assert set(lone) == {200}


def test_json_of_very_many_values_is_not_even_read(served: Server) -> None:
    body = b'{"instances": [' + b"[[]]," * 3_000_000 + b"0]}"

    refused = post(served, "/predictions/tiny-mda", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "request body must be JSON of at most 100000 values, got more"
