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
from serving.settings import WorkerSettings
from serving.torchserve.archive import Archive, model_config, package, verify


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
            "limits": {"max_bytes": 10 * 1024 * 1024, "max_pixels": 40_000_000, "max_instances": 256},
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


def test_settings_that_package_does_not_write_are_refused(bundle_dir: Path, tmp_path: Path) -> None:
    made = package(bundle_dir, model_store=tmp_path, settings=WorkerSettings(workers=2, threads=1))
    verify(tmp_path, Archive("tiny-mda", 1))
    with zipfile.ZipFile(made) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(made, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content + b"useVenv: true\n" if name == "model-config.yaml" else content)

    with pytest.raises(ServerError, match=r"got another model-config\.yaml$"):
        verify(tmp_path, Archive("tiny-mda", 1))
