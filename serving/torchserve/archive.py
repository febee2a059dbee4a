"""Packaging: a bundle → `<name>.mar`, the archive that TorchServe loads.

The archive is the bundle's files, flat, with `model-config.yaml` and TorchServe's manifest beside them; extracted, it
is a bundle again. It holds no code: its handler is `serving.torchserve.handler`, which the launcher puts on the path.
The same bundle and settings give the same bytes.
"""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import yaml

from serving.bundle import MANIFEST, Bundle, Precision
from serving.errors import ServerError
from serving.runtimes import RuntimeName

HANDLER = "serving.torchserve.handler"
CONFIG_FILE = "model-config.yaml"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip file can hold
RESPONSE_TIMEOUT_S = 120
ARCHIVE_FORMAT = "0.12.0"
CREATED = "01/01/1980 00:00:00"


def package(
    bundle_dir: str | Path,
    *,
    model_store: str | Path = "model_store",
    runtime: RuntimeName = "onnx",
    batch_size: int = 32,
    max_batch_delay_ms: int = 1,
    workers: int = 1,
    threads: int | None = None,
    precision: Precision = "float32",
) -> Path:
    """Verify a bundle and write `<model_store>/<name>.mar`, in place of one that is there.

    Args:
        bundle_dir: folder of the bundle.
        model_store: folder of the archives; made if missing.
        runtime: which graph the workers run.
        batch_size: requests that TorchServe hands to a worker at once, at most.
        max_batch_delay_ms: how long it waits for a batch to fill.
        workers: processes that serve the model.
        threads: of one worker's inference on the CPU; None shares the cores among the workers.
        precision: `int8` serves the bundle's variant of that name.

    Returns:
        The archive.

    Raises:
        BundleError: if the bundle is not what its digests say, or has no graph in this precision.
    """
    bundle = Bundle.load(bundle_dir)
    bundle.onnx(precision)
    store = Path(model_store)
    store.mkdir(parents=True, exist_ok=True)
    config = model_config(runtime, batch_size, max_batch_delay_ms, workers, threads, precision)
    target = store / f"{bundle.manifest.name}.mar"
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=store) as stage:
        staged = Path(stage, target.name)
        _write(staged, bundle, config)
        staged.replace(target)
    return target


def check(archive: Path) -> None:
    """Refuse what TorchServe would take for a model without being one.

    Raises:
        ServerError: if the archive is no zip file with a bundle in it.
    """
    try:
        with zipfile.ZipFile(archive) as zip_file:
            zip_file.getinfo(MANIFEST)
    except (OSError, zipfile.BadZipFile, KeyError) as exc:
        raise ServerError(f"{archive} must be an archive made by `python -m serving package`, got {exc}") from exc


def model_config(
    runtime: RuntimeName,
    batch_size: int,
    max_batch_delay_ms: int,
    workers: int,
    threads: int | None,
    precision: Precision = "float32",
) -> dict[str, Any]:
    """The content of `model-config.yaml`; `handler` is for our handler, the rest for TorchServe."""
    return {
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": batch_size,
        "maxBatchDelay": max_batch_delay_ms,
        "responseTimeout": RESPONSE_TIMEOUT_S,
        "handler": {"runtime": runtime, "precision": precision, "threads": threads},
    }


def _write(archive: Path, bundle: Bundle, config: dict[str, Any]) -> None:
    # Stored, not deflated: weights hardly compress, and a worker is ready sooner.
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zip_file:
        for name in sorted([MANIFEST, *bundle.manifest.sha256]):
            _add(zip_file, name, (bundle.path / name).read_bytes())
        _add(zip_file, CONFIG_FILE, yaml.safe_dump(config, sort_keys=False).encode())
        _add(zip_file, "MAR-INF/MANIFEST.json", _torchserve_manifest(bundle).encode())


def _add(zip_file: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.external_attr = 0o644 << 16
    zip_file.writestr(entry, content)


def _torchserve_manifest(bundle: Bundle) -> str:
    """What TorchServe's archiver would write, less the time of day and the archiver's file checks."""
    model = {
        "modelName": bundle.manifest.name,
        "handler": HANDLER,
        "modelVersion": str(bundle.manifest.version),
        "configFile": CONFIG_FILE,
    }
    fields = {"createdOn": CREATED, "runtime": "python", "model": model, "archiverVersion": ARCHIVE_FORMAT}
    return json.dumps(fields, indent=2)
