import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from serving.bundle import Bundle
from serving.errors import BundleError, ServerError
from serving.limits import Limits
from serving.settings import WorkerSettings
from serving.torchserve.archive import model_config, package, read_settings, rebuild


def test_the_archive_extracts_to_a_bundle(bundle_dir: Path, tmp_path: Path) -> None:
    archive = package(bundle_dir, model_store=tmp_path / "store")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "model")

    assert archive == tmp_path / "store" / "tiny-mda-1.mar"
    assert Bundle.load(tmp_path / "model").manifest == Bundle.load(bundle_dir).manifest


def test_the_manifest_is_what_torchserves_archiver_writes(bundle_dir: Path, tmp_path: Path) -> None:
    script = """
from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_packaging_utils import ModelExportUtils
fields = {"model_name": "tiny-mda", "handler": "serving.torchserve.handler", "version": "1"}
print(ModelExportUtils.generate_manifest_json(ModelArchiverConfig(**fields, config_file="model-config.yaml")))
"""
    expected = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    with zipfile.ZipFile(package(bundle_dir, model_store=tmp_path)) as file:
        manifest = json.loads(file.read("MAR-INF/MANIFEST.json"))

    assert manifest == {**expected, "createdOn": manifest["createdOn"]}


def test_the_settings_travel_as_yaml(bundle_dir: Path, tmp_path: Path) -> None:
    archive = package(
        bundle_dir,
        model_store=tmp_path,
        settings=WorkerSettings(runtime="torchscript", batch_size=4, workers=3, threads=2),
    )
    with zipfile.ZipFile(archive) as file:
        config = yaml.safe_load(file.read("model-config.yaml"))

    assert config == model_config(WorkerSettings(runtime="torchscript", batch_size=4, workers=3, threads=2))
    assert config == {
        "minWorkers": 3,
        "maxWorkers": 3,
        "batchSize": 4,
        "maxBatchDelay": 1,
        "responseTimeout": 120,
        "handler": {
            "runtime": "torchscript",
            "precision": "float32",
            "batch_size": 4,
            "workers": 3,
            "threads": 2,
            "timeout_s": 120,
            "limits": Limits().model_dump(),
        },
    }


def test_the_same_bundle_gives_the_same_bytes_even_in_parallel(bundle_dir: Path, tmp_path: Path) -> None:
    first = package(bundle_dir, model_store=tmp_path / "a").read_bytes()
    with ThreadPoolExecutor(4) as pool:
        archives = list(pool.map(lambda _: package(bundle_dir, model_store=tmp_path / "b"), range(8)))

    assert archives[0].read_bytes() == first
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["tiny-mda-1.mar"]


def test_a_damaged_bundle_is_not_packaged_and_leaves_the_old_archive(bundle_dir: Path, tmp_path: Path) -> None:
    archive = package(bundle_dir, model_store=tmp_path / "store")
    before = archive.read_bytes()
    damaged = Path(shutil.copytree(bundle_dir, tmp_path / "damaged"))
    (damaged / "model.onnx").write_bytes(b"")

    with pytest.raises(BundleError, match=r"model\.onnx must have SHA-256 "):
        package(damaged, model_store=tmp_path / "store")
    assert archive.read_bytes() == before


def test_a_rebuilt_archive_is_the_one_that_package_would_write(bundle_dir: Path, tmp_path: Path) -> None:
    packaged = WorkerSettings(workers=2, threads=1, batch_size=3)
    made = package(bundle_dir, model_store=tmp_path / "store", settings=packaged)

    settings = rebuild(made, tmp_path / "own", batch_size=7, threads=None, max_pixels=1000)
    expected = packaged.model_copy(update={"batch_size": 7, "limits": Limits(max_pixels=1000)})
    assert settings == read_settings(tmp_path / "own" / made.name) == expected
    again = package(bundle_dir, model_store=tmp_path / "again", settings=expected)
    assert (tmp_path / "own" / made.name).read_bytes() == again.read_bytes()


def test_a_rebuilt_archive_holds_nothing_that_was_hidden_in_the_old_one(bundle_dir: Path, tmp_path: Path) -> None:
    made = package(bundle_dir, model_store=tmp_path / "store")
    good = made.read_bytes()
    made.write_bytes(b"#!/bin/sh before the zip file\n" + good + b"and behind it")

    rebuild(made, tmp_path / "own")
    assert (tmp_path / "own" / made.name).read_bytes() == good


def test_a_precision_that_the_bundle_has_not_is_refused_by_name(bundle_dir: Path, tmp_path: Path) -> None:
    made = package(bundle_dir, model_store=tmp_path / "store")

    message = r"^precision of .*{} must be float32, got int8: export the bundle with --int8$"
    with pytest.raises(BundleError, match=message.format("tiny-mda/1")):
        package(bundle_dir, model_store=tmp_path / "store", settings=WorkerSettings(precision="int8"))
    with pytest.raises(BundleError, match=message.format("tiny-mda-1.mar")):
        rebuild(made, tmp_path / "own", precision="int8")
    with pytest.raises(BundleError, match=r"^precision int8 must run by onnx, got torchscript$"):
        rebuild(made, tmp_path / "own", precision="int8", runtime="torchscript")
    assert list((tmp_path / "own").glob("*")) == []


@pytest.mark.parametrize("line", ["useVenv: true", "handler: 3", "{", "batchSize: 7"])
def test_settings_that_package_does_not_write_are_refused(line: str, bundle_dir: Path, tmp_path: Path) -> None:
    made = package(bundle_dir, model_store=tmp_path, settings=WorkerSettings(workers=2, threads=1))
    with zipfile.ZipFile(made) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(made, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content + f"{line}\n".encode() if name == "model-config.yaml" else content)

    with pytest.raises(ServerError, match=r"got another model-config\.yaml$"):
        rebuild(made, tmp_path / "own")
