"""Shared fixtures: small real bundles, images, and one real TorchServe for the whole suite.

The bundles are written from the formulas here, not by the project's exporter: a Gaussian-mixture model (4 classes of 2
components over 3 features of an 8 x 8 gray image), the same with held-out images, and a softmax model. Their golden
answers are numpy in float64.
"""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from openapi_schema_validator import OAS31Validator
from PIL import Image

from serving.bundle import HELD_OUT, Bundle, graph_files, staged, write_manifest
from serving.held_out import HeldOut
from serving.settings import WorkerSettings
from serving.torchserve import launch, process
from serving.torchserve.archive import package

ROOT = Path(__file__).resolve().parents[1]
LABELS = ("circle", "cross", "empty", "noise")
CLASSES, COMPONENTS, DIM, SIZE = 4, 2, 3, 8
ATYPICAL_BELOW = -8.5  # nats; the first of the images is below, the others are above
HELD_OUT_IMAGES = 399  # the least typicality is 1 in 400
COMPONENT_NAMES = {"cross": {0: "upright", 1: "tilted"}, "noise": {1: "fine"}}


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds anything in the project's own cache, or leaves anything there."""
    from training.data import Sources

    defaults = Sources.__init__.__defaults__ or ()
    own = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        changed = tuple(own if default == Path("cache") else default for default in defaults)
        patch.setattr(Sources.__init__, "__defaults__", changed)
        yield


def gmm_parameters() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        "projection": rng.normal(0, 0.4, (SIZE * SIZE, DIM)),
        "means": rng.normal(0, 1.5, (CLASSES, COMPONENTS, DIM)),
        "variances": rng.uniform(0.5, 1.5, (CLASSES, COMPONENTS)),
        "weights": rng.dirichlet(np.full(COMPONENTS, 5.0), CLASSES),
        "priors": rng.dirichlet(np.full(CLASSES, 5.0)),
    }


def gmm_answers(images: np.ndarray) -> dict[str, np.ndarray]:
    """The mixture's outputs for (N, 1, 8, 8) uint8, straight from the densities, float64."""
    p = gmm_parameters()
    z = images.reshape(len(images), -1) / 255 @ p["projection"]
    squared = ((z[:, None, None, :] - p["means"]) ** 2).sum(-1)
    density = np.exp(-squared / (2 * p["variances"])) / (2 * np.pi * p["variances"]) ** (DIM / 2)
    joint = p["priors"][:, None] * p["weights"] * density  # (N, C, K)
    total = joint.sum((1, 2))
    return {
        "posterior": joint.sum(2) / total[:, None],
        "responsibilities": joint / joint.sum(2, keepdims=True),
        "log_density": np.log(total),
        "features": z,
    }


def softmax_answers(images: np.ndarray) -> dict[str, np.ndarray]:
    z = images.reshape(len(images), -1) / 255 @ gmm_parameters()["projection"]
    scores = np.exp(z @ gmm_parameters()["means"][:, 0].T)
    return {"posterior": scores / scores.sum(1, keepdims=True), "features": z}


def typical_answers(images: np.ndarray) -> dict[str, np.ndarray]:
    """The mixture's outputs, and as typicality score a third of the log-density."""
    answers = gmm_answers(images)
    features = answers.pop("features")
    return answers | {"typicality_score": answers["log_density"] / 3, "features": features}


def held_out() -> HeldOut:
    """What the mixture answers for patterns, as if they were of all classes and right as often as it happens."""
    rng = np.random.default_rng(13)
    patterns = (
        rng.integers(0, 256, (HELD_OUT_IMAGES, 1, 2, 2), dtype=np.uint8).repeat(SIZE // 2, 2).repeat(SIZE // 2, 3)
    )
    return HeldOut(
        np.sort(typical_answers(patterns)["typicality_score"]).astype(np.float32),
        rng.random(HELD_OUT_IMAGES, np.float32),
        np.arange(HELD_OUT_IMAGES) % CLASSES,
        np.arange(CLASSES),
    )


def golden_images() -> np.ndarray:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (4, 1, SIZE, SIZE), dtype=np.uint8)
    plain = np.stack([np.full((1, SIZE, SIZE), level, dtype=np.uint8) for level in (0, 128, 255)])
    return np.concatenate([noise, plain])


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """(H, W) or (H, W, C) uint8 → the bytes of an image file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are the same to the bit only for the same number of threads, which other tests change."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def images() -> list[bytes]:
    """Eight different 8 x 8 gray PNGs."""
    rng = np.random.default_rng(11)
    return [encoded(rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)) for _ in range(8)]


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a bundle of its own: `make_bundle(name="tiny-mda", kind="mda", version=1)`; fields of its manifest too."""
    answering = {"mda": gmm_answers, "softmax": softmax_answers, "typical": typical_answers}
    graphs = cache(lambda kind: export_graphs(kind, tmp_path_factory.mktemp(kind)))

    def make(name: str = "tiny-mda", kind: str = "mda", version: int = 1, **fields: Any) -> Path:
        target = tmp_path_factory.mktemp("bundles") / name / str(version)
        answers = answering[kind](golden_images())
        with staged(target) as stage:
            shutil.copytree(graphs(kind), stage, dirs_exist_ok=True)
            if kind == "typical":
                held_out().write(stage / HELD_OUT)
            np.savez(stage / "golden.npz", images=golden_images(), **answers)
            write_manifest(stage, **manifest_fields(name, kind, version, tuple(answers)) | fields)
        return target

    return make


@pytest.fixture(scope="session")
def bundle_dir(make_bundle: Callable[..., Path]) -> Path:
    """A mixture bundle; read only."""
    return make_bundle()


@pytest.fixture(scope="session")
def softmax_dir(make_bundle: Callable[..., Path]) -> Path:
    """A softmax bundle; read only."""
    return make_bundle("tiny-softmax", "softmax")


@pytest.fixture(scope="session")
def typical_dir(make_bundle: Callable[..., Path]) -> Path:
    """A mixture bundle with held-out images, priors and names of components; read only."""
    return make_bundle("tiny-typical", "typical")


@pytest.fixture(scope="session")
def model_store(
    bundle_dir: Path,
    softmax_dir: Path,
    typical_dir: Path,
    make_bundle: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Archives: `tiny-mda` by ONNX Runtime, `tiny-mda-ts` by TorchScript, which knows a bound, one of each other."""
    store = tmp_path_factory.mktemp("store")
    package(bundle_dir, model_store=store, settings=WorkerSettings(batch_size=8, workers=1, threads=1))
    package(
        make_bundle("tiny-mda-ts", metrics={"log_density_quantiles": {"0.01": ATYPICAL_BELOW}}),
        model_store=store,
        settings=WorkerSettings(runtime="torchscript", workers=1, threads=1),
    )
    for folder in (softmax_dir, typical_dir):
        package(folder, model_store=store, settings=WorkerSettings(workers=1, threads=1))
    return store


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of the shared server."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def server(model_store: Path, state: Path) -> Iterator[launch.Server]:
    """A TorchServe that serves all of `model_store`, started and stopped by the command line."""
    serving("start", "--model-store", model_store, "--state", state, "--port", 0, "--device", "cpu", check=True)
    running = launch.load(state)
    if running is None:
        raise RuntimeError(f"start must leave server.json in {state}, got none")
    yield running
    serving("stop", "--state", state, check=True)


@pytest.fixture
def own_state(tmp_path: Path) -> Iterator[Path]:
    """A state folder for one test; whatever it has started is ended after it."""
    state = tmp_path / "state"
    yield state
    launch.stop(state, grace_s=0, drain_s=0)


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run a command of serving without waiting for it."""
    begun = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = ["env", "--default-signal=INT"]  # which a shell's background jobs ignore, and their children
        command += [sys.executable, "-m", "serving", *map(str, arguments)]
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))
        return begun[-1]

    yield run
    for command in begun:
        command.kill()
        command.communicate()


def running(state: Path) -> launch.Server:
    """The server of a state folder."""
    server = launch.load(state)
    assert server is not None
    return server


def workers_of(server: launch.Server, model: str) -> list[dict[str, Any]]:
    """What TorchServe says of a model's workers."""
    (status,) = httpx.get(f"{server.management_url}/models/{model}", trust_env=False).json()
    workers: list[dict[str, Any]] = status["workers"]
    return workers


def exporter_of(server: launch.Server) -> int:
    """The process id of the exporter, which the keeper has begun."""
    (pid,) = (member.pid for member in process.members(server.keeper) if member.pid != server.keeper.pid)
    return pid


def until(condition: Callable[[], object], timeout_s: float = 120) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {timeout_s:g} s"
        time.sleep(0.02)


def tampered(bundle_dir: Path, target: Path, **golden: np.ndarray) -> Path:
    """A copy of the bundle with another golden.npz and digests that fit it."""
    shutil.copytree(bundle_dir, target)
    manifest = Bundle.load(bundle_dir).manifest.model_dump(exclude={"sha256"})
    (target / "bundle.json").unlink()
    answers = {"images": golden_images(), **gmm_answers(golden_images())}
    np.savez(target / "golden.npz", **{**answers, **golden})
    write_manifest(target, **manifest)
    return target


def with_int8(bundle_dir: Path, target: Path) -> Path:
    """A copy of the bundle whose graph stands for one in int8 too; its answers are right, its speed is float32's."""
    shutil.copytree(bundle_dir, target)
    manifest = Bundle.load(bundle_dir).manifest.model_dump(exclude={"sha256"})
    (target / "bundle.json").unlink()
    for source, copy in zip(graph_files("float32"), graph_files("int8"), strict=True):
        shutil.copy(target / source, target / copy)
    write_manifest(target, **manifest | {"variants": {"int8": {"accuracy": 1.0}}})
    return target


@cache
def openapi() -> dict[str, Any]:
    """The description of the HTTP interface."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "serving" / "openapi.yaml").read_text())
    return document


def described(response: httpx.Response) -> None:
    """Check an answer's status and body against the description."""
    response.read()
    path = response.request.url.path
    template = next(t for t in openapi()["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/:]+", t), path))
    answers = openapi()["paths"][template]["post"]["responses"]
    assert str(response.status_code) in answers, f"{path}: {response.status_code} is not described"
    if not response.content:  # TorchServe's refusal of too large a body
        assert response.status_code == 413
        return
    answer = answers[str(response.status_code)]
    if "$ref" in answer:
        answer = openapi()["components"]["responses"][answer["$ref"].rsplit("/", 1)[1]]
    schema = answer["content"]["application/json"]["schema"]
    OAS31Validator({**schema, "components": openapi()["components"]}).validate(response.json())


def serving(*arguments: object, check: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m serving ...` from the project's root, with these variables beside those of the environment."""
    command = [sys.executable, "-m", "serving", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=300)
    if check and result.returncode != 0:
        raise RuntimeError(f"{command} exited {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


def manifest_fields(name: str, kind: str, version: int, outputs: tuple[str, ...]) -> dict[str, Any]:
    typical = {
        "held_out": {"images": HELD_OUT_IMAGES, "by": "split"},
        "priors": tuple(gmm_parameters()["priors"]),
        "component_names": COMPONENT_NAMES,
    }
    return (typical if kind == "typical" else {}) | {
        "name": name,
        "version": version,
        "labels": LABELS,
        "input": {"channels": 1, "height": SIZE, "width": SIZE},
        "head": {"kind": kind, "classes": CLASSES, "dim": DIM, "components": 1 if kind == "softmax" else COMPONENTS},
        "outputs": outputs,
        "recipe": {},
        "dataset": {"name": "made-up", "splits": {"train": 1}, "fingerprint": "0" * 64},
        "metrics": {},
        "versions": {},
    }


def export_graphs(kind: str, folder: Path) -> Path:
    """Write model.pt and model.onnx."""
    outputs = {
        "mda": ["posterior", "responsibilities", "log_density", "features"],
        "softmax": ["posterior", "features"],
        "typical": ["posterior", "responsibilities", "log_density", "typicality_score", "features"],
    }
    return export_module(torch_module(kind).eval(), outputs[kind], folder)


def export_module(module: Any, outputs: list[str], folder: Path) -> Path:
    """Likewise, of any module that takes the golden images."""
    import torch

    example = torch.from_numpy(golden_images())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, example).save(str(folder / "model.pt"))
        torch.onnx.export(
            module,
            (example,),
            str(folder / "model.onnx"),
            input_names=["images"],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return folder


def torch_module(kind: str) -> Any:
    import torch

    p = {name: torch.tensor(value, dtype=torch.float32) for name, value in gmm_parameters().items()}

    class Softmax(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            z = images.float().flatten(1) / 255 @ p["projection"]
            return torch.softmax(z @ p["means"][:, 0].T, 1), z

    class Mixture(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            z = images.float().flatten(1) / 255 @ p["projection"]
            squared = (z[:, None, None, :] - p["means"]).square().sum(-1)
            log_density = -squared / (2 * p["variances"]) - DIM / 2 * torch.log(2 * torch.pi * p["variances"])
            joint = p["priors"].log()[:, None] + p["weights"].log() + log_density
            per_class = joint.logsumexp(2)
            total = per_class.logsumexp(1)
            return (per_class - total[:, None]).exp(), torch.softmax(joint, 2), total, z

    class Typical(Mixture):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            *others, log_density, z = super().forward(images)
            return *others, log_density, log_density / 3, z

    return {"mda": Mixture, "softmax": Softmax, "typical": Typical}[kind]()
