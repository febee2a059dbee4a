"""The model repository for Triton: what the command writes, replaces, keeps and refuses, without a server."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import LABELS, ROOT, gmm_parameters, serving, with_int8
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonserver import entry

from serving.bundle import Bundle
from serving.errors import ServingError
from serving.limits import DEFAULT_LIMITS
from serving.settings import WorkerSettings
from serving.tensors import TENSORS
from serving.torchserve.archive import package
from serving.triton.code import needed
from serving.triton.config import configuration
from serving.triton.repository import write
from serving.triton.served import Served


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


@pytest.mark.parametrize("name", ["requirements", "requirements-gpu", "server"])
def test_locks_are_hashed_hold_no_addresses_and_what_is_required(name: str) -> None:
    folder = ROOT / "serving" / "triton"
    text = (folder / f"{name}.txt").read_text()

    assert "://" not in text
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in block for block in blocks)
    pinned = {block.partition("==")[0].partition("[")[0] for block in blocks}
    required = (folder / f"{name}.in").read_text() + (folder / "requirements.in").read_text() * (name == "server")
    assert set(re.findall(r"^([a-z][\w-]+)", required, re.MULTILINE)) <= pinned
    assert "numpy==1.26.4" in text, "the stub crashes on BYTES with numpy 2"
