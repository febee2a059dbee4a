"""Other clients than ours: TorchServe's gRPC by its own .proto, and Triton's of the Open Inference Protocol."""

import base64
import json
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from conftest import LABELS, gmm_answers
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from serving.predictor import Predictor
from serving.torchserve.patches.classes import JAR
from serving.torchserve.state import Server

PROTO = "inference.proto"
IMPORTED = ("google/protobuf/any.proto", "google/protobuf/empty.proto", "google/rpc/status.proto")
SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
PUBLIC_SERVICE = "inference.GRPCInferenceService"  # as KServe and Triton call it, and all of their clients

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def channel(server: Server, state: Path) -> Iterator[grpc.Channel]:
    lines = (state / "config.properties").read_text().splitlines()
    port = dict(line.split("=", 1) for line in lines)["grpc_inference_port"]
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


@pytest.fixture(scope="module")
def predictions(channel: grpc.Channel, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Call `Predictions` with the fields of its request; its messages are those of TorchServe's own file."""
    folder = tmp_path_factory.mktemp("proto")
    package = find_spec("ts")
    assert package is not None
    assert package.origin is not None
    with zipfile.ZipFile(Path(package.origin).parents[1] / JAR) as jar:
        jar.extractall(folder, (PROTO, *IMPORTED))
    arguments = ["protoc", f"-I{folder}", "--include_imports", f"--descriptor_set_out={folder / 'set'}", PROTO]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"{PROTO} of {JAR} must compile, got an error")
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString((folder / "set").read_bytes()).file:
        pool.Add(file)
    method = pool.FindServiceByName(SERVICE).methods_by_name["Predictions"]
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    call = channel.unary_unary(f"/{SERVICE}/Predictions", request.SerializeToString, response.FromString)
    return lambda **fields: call.future(request(**fields), timeout=60)


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def posted(server: Server, **request: Any) -> Any:
    return httpx.post(f"{server.url}/predictions/tiny-mda", timeout=60, trust_env=False, **request).json()


def tensor(images: list[bytes], *, binary: bool) -> InferInput:
    tensor = InferInput("images", [len(images)], "BYTES")
    data = images if binary else [base64.b64encode(image) for image in images]  # JSON holds text alone
    tensor.set_data_from_numpy(np.array(data, dtype=object), binary_data=binary)
    return tensor


def test_grpc_answers_as_http_does(server: Server, predictions: Call, images: list[bytes]) -> None:
    parameters = b'{"top_k": 1, "return": ["features"]}'
    plain = predictions(model_name="tiny-mda", input={"data": images[0]}).result()
    chosen = predictions(model_name="tiny-mda", input={"data": images[0], "parameters": parameters}).result()
    named = predictions(model_name="tiny-mda", model_version="1", input={"data": images[0]}).result()

    expected = posted(server, content=images[0])
    assert json.loads(plain.prediction) == json.loads(named.prediction) == expected
    form = {"files": {"data": images[0]}, "data": {"parameters": parameters.decode()}}
    assert json.loads(chosen.prediction) == posted(server, **form)


def test_grpc_tells_timings(predictions: Call, images: list[bytes]) -> None:
    parameters = b'{"return": ["timings"]}'
    timed = predictions(model_name="tiny-mda", input={"data": images[0], "parameters": parameters}).result()

    assert json.loads(timed.prediction)["timings"].keys() == {"decode", "inference", "encode"}


def test_grpc_takes_json_too(server: Server, predictions: Call, images: list[bytes]) -> None:
    body = {"instances": [{"b64": "?"}], "parameters": {"top_k": 1}}
    answer = predictions(model_name="tiny-mda", input={"data": json.dumps(body).encode()}).result()

    assert json.loads(answer.prediction) == posted(server, json=body)


def test_grpc_calls_that_meet_in_a_batch_get_their_own_answers(
    server: Server, predictions: Call, images: list[bytes]
) -> None:
    inputs = [*images[:5], b"text", *images[5:]] * 3
    calls = [predictions(model_name="tiny-mda", input={"data": image}) for image in inputs]
    answers = [json.loads(call.result().prediction) for call in calls]

    for image, answer in zip(inputs, answers, strict=True):
        expected = posted(server, content=image)  # an error has no status but OK in gRPC, so it is told by its body
        assert list(answer) == list(expected)
        assert answer.get("error") == expected.get("error")
        assert answer.get("label") == expected.get("label")
        assert answer.get("log_density", 0) == pytest.approx(expected.get("log_density", 0), rel=1e-5)


def test_an_unknown_model_by_grpc(predictions: Call, images: list[bytes]) -> None:
    with pytest.raises(grpc.RpcError, match="Model not found: nothing"):
        predictions(model_name="nothing", input={"data": images[0]}).result()


def test_the_open_inference_protocol_has_no_grpc(channel: grpc.Channel) -> None:
    """TorchServe has it under a name of its own, and a worker dies of each error there; it stays off."""
    for service in (PUBLIC_SERVICE, "org.pytorch.serve.grpc.openinference.GRPCInferenceService"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{service}/ServerLive")(b"", timeout=60)

        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_the_tensors(
    triton: InferenceServerClient, bundle_dir: Path, images: list[bytes], binary: bool
) -> None:
    answer = triton.infer("tiny-mda", [tensor(images[:3], binary=binary)], request_id="7")

    predictor = Predictor.open(bundle_dir, threads=1)
    expected = gmm_answers(np.stack([predictor.decode(image) for image in images[:3]]))
    assert (answer.get_response()["id"], answer.get_response()["model_name"]) == ("7", "tiny-mda")
    assert answer.as_numpy("label").tolist() == [LABELS[winner] for winner in expected["posterior"].argmax(1)]
    for name in ("posterior", "responsibilities", "log_density"):
        assert answer.as_numpy(name) == pytest.approx(expected[name], abs=1e-4)


def test_tritons_client_chooses_its_tensors(triton: InferenceServerClient, images: list[bytes]) -> None:
    wanted = [InferRequestedOutput("features"), InferRequestedOutput("component", binary_data=False)]
    answer = triton.infer("tiny-mda", [tensor(images[:2], binary=True)], outputs=wanted)

    assert [output["name"] for output in answer.get_response()["outputs"]] == ["features", "component"]
    assert (answer.as_numpy("features").shape, answer.as_numpy("component").dtype) == ((2, 3), np.int64)


def test_tritons_client_understands_an_error(triton: InferenceServerClient, images: list[bytes]) -> None:
    with pytest.raises(
        InferenceServerException, match=r"unsupported_image_type: images\[1\]: image must be PNG"
    ) as caught:
        triton.infer("tiny-mda", [tensor([images[0], b"text"], binary=True)])

    assert caught.value.status() == "415"
