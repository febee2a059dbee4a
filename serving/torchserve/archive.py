"""Packaging: a bundle → `<name>-<version>.mar`, the archive that TorchServe loads.

The archive is the bundle's files, flat, with `model-config.yaml` and TorchServe's manifest beside them; extracted, it
is a bundle again. It holds no code: its handler is `serving.torchserve.handler`, which the launcher puts on the path.
The same bundle and settings give the same bytes.
"""

import hashlib
import json
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serving.bundle import MANIFEST, NAME_PATTERN, Bundle, Manifest
from serving.errors import ServerError
from serving.runtimes import check_runtime
from serving.settings import DEFAULT_SETTINGS, WorkerSettings
from serving.torchserve.changes import MAX_BATCH_DELAY

HANDLER = "serving.torchserve.handler"
CONFIG_FILE = "model-config.yaml"
MANIFEST_OF_TORCHSERVE = "MAR-INF/MANIFEST.json"
FILE = re.compile(rf"(?P<name>{NAME_PATTERN.strip('^$')})-(?P<version>[1-9]\d*)\.mar")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip file can hold
ARCHIVE_FORMAT = "0.12.0"
CREATED = "01/01/1980 00:00:00"


def package(
    bundle_dir: str | Path,
    *,
    model_store: str | Path = "model_store",
    settings: WorkerSettings = DEFAULT_SETTINGS,
) -> Path:
    """Verify a bundle and write `<model_store>/<name>-<version>.mar`, in place of one that is there.

    Args:
        bundle_dir: folder of the bundle.
        model_store: folder of the archives; made if missing.
        settings: of the workers.

    Returns:
        The archive.

    Raises:
        BundleError: if the bundle is not what its digests say, or has no graph in this precision for this runtime.
    """
    check_runtime(settings.runtime, settings.precision)
    bundle = Bundle.load(bundle_dir)
    bundle.onnx(settings.precision)
    store = Path(model_store)
    store.mkdir(parents=True, exist_ok=True)
    config = model_config(settings)
    target = store / Archive(bundle.manifest.name, bundle.manifest.version).file
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=store) as stage:
        staged = Path(stage, target.name)
        _write(staged, bundle, config)
        staged.replace(target)
    return target


@dataclass(frozen=True, order=True)
class Archive:
    """An archive in a model store; sorted by name, then by version.

    Attributes:
        name: of the model.
        version: of the model.
    """

    name: str
    version: int

    @property
    def file(self) -> str:
        """Its name in the model store."""
        return f"{self.name}-{self.version}.mar"

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


def archives(store: Path) -> list[Archive]:
    """All archives of a model store, in order.

    Raises:
        ServerError: if a file there is not named as `package` names it.
    """
    found = []
    for path in store.glob("*.mar"):
        match = FILE.fullmatch(path.name)
        if match is None:
            raise ServerError(f"archives in {store} must be named <name>-<version>.mar, got {path.name}")
        found.append(Archive(match["name"], int(match["version"])))
    return sorted(found)


def verify(store: Path, archive: Archive) -> None:
    """Refuse an archive that is not what `package` has made: TorchServe would run whatever it holds.

    Raises:
        ServerError: if it is no zip file, holds other files than its bundle's, or one with another digest, names
            another handler or model, or asks TorchServe for more than `package` does.
    """
    path = store / archive.file
    try:
        with zipfile.ZipFile(path) as zip_file:
            bundle = Manifest.model_validate_json(zip_file.read(MANIFEST))
            expected = {MANIFEST, CONFIG_FILE, MANIFEST_OF_TORCHSERVE, *bundle.sha256}
            if set(zip_file.namelist()) != expected:
                raise ValueError(f"other files: {', '.join(sorted(set(zip_file.namelist()) ^ expected))}")
            for name, digest in bundle.sha256.items():
                with zip_file.open(name) as file:
                    if (found := hashlib.file_digest(file, "sha256").hexdigest()) != digest:  # type: ignore[arg-type]
                        raise ValueError(f"{name} with SHA-256 {found} instead of {digest}")
            written = zip_file.read(MANIFEST_OF_TORCHSERVE).decode()
        if (bundle.name, bundle.version) != (archive.name, archive.version):
            raise ValueError(f"{bundle.name} version {bundle.version}")
        if written != _torchserve_manifest(bundle):
            raise ValueError(f"another {MANIFEST_OF_TORCHSERVE}")
        if not _is_of_package(path):
            raise ValueError(f"another {CONFIG_FILE}")
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as exc:
        reason = "an archive without a bundle" if isinstance(exc, ValidationError) else exc
        raise ServerError(f"{path} must be an archive made by `python -m serving package`, got {reason}") from exc


def _is_of_package(archive: Path) -> bool:
    """Whether an archive's settings are such as `package` writes."""
    try:
        found = _read_config(archive)
        return found == model_config(WorkerSettings.model_validate(found["handler"]))
    except (TypeError, KeyError, ValidationError, yaml.YAMLError):
        return False


def read_settings(archive: Path) -> WorkerSettings:
    """The settings that an archive was packaged with."""
    return WorkerSettings.model_validate(_read_config(archive)["handler"])


def model_config(settings: WorkerSettings) -> dict[str, Any]:
    """The content of `model-config.yaml`: `handler` holds the settings, the rest is what TorchServe needs of them."""
    workers = settings.workers
    return {
        **({} if workers is None else {"minWorkers": workers, "maxWorkers": workers}),
        "batchSize": settings.batch_size,
        "maxBatchDelay": MAX_BATCH_DELAY,
        "responseTimeout": settings.timeout_s,
        "handler": settings.model_dump(),
    }


def _read_config(archive: Path) -> dict[str, Any]:
    with zipfile.ZipFile(archive) as zip_file:
        config: dict[str, Any] = yaml.safe_load(zip_file.read(CONFIG_FILE))
    return config


def _write(archive: Path, bundle: Bundle, config: dict[str, Any]) -> None:
    # Stored, not deflated: weights hardly compress, and a worker is ready sooner.
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zip_file:
        for name in sorted([MANIFEST, *bundle.manifest.sha256]):
            _add(zip_file, name, (bundle.path / name).read_bytes())
        _add(zip_file, CONFIG_FILE, yaml.safe_dump(config, sort_keys=False).encode())
        _add(zip_file, MANIFEST_OF_TORCHSERVE, _torchserve_manifest(bundle.manifest).encode())


def _add(zip_file: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.external_attr = 0o644 << 16
    zip_file.writestr(entry, content)


def _torchserve_manifest(bundle: Manifest) -> str:
    """What TorchServe's archiver would write, less the time of day and the archiver's file checks."""
    model = {
        "modelName": bundle.name,
        "handler": HANDLER,
        "modelVersion": str(bundle.version),
        "configFile": CONFIG_FILE,
    }
    fields = {"createdOn": CREATED, "runtime": "python", "model": model, "archiverVersion": ARCHIVE_FORMAT}
    return json.dumps(fields, indent=2)
