"""Packaging: a bundle → `<name>-<version>.mar`, the archive that TorchServe loads.

The archive is the bundle's files, flat, with `model-config.yaml` and TorchServe's manifest beside them; extracted, it
is a bundle again. It holds no code: its handler is `serving.torchserve.handler`, which the launcher puts on the path.
The same bundle and settings give the same bytes. A server serves none but archives of its own making, see `rebuild`.
"""

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serving.bundle import MANIFEST, Bundle, Manifest
from serving.errors import ServerError
from serving.runtimes import check_runtime
from serving.settings import DEFAULT_SETTINGS, WorkerSettings, changed
from serving.torchserve.patches.classes import MAX_BATCH_DELAY

HANDLER = "serving.torchserve.handler"
CONFIG_FILE = "model-config.yaml"
MANIFEST_OF_TORCHSERVE = "MAR-INF/MANIFEST.json"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip file can hold
ARCHIVE_FORMAT = "0.12.0"
CREATED = "01/01/1980 00:00:00"


@dataclass(frozen=True, order=True)
class Archive:
    """An archive by its name; sorted by the model's, then by version.

    Attributes:
        name: of the model.
        version: of the model.
    """

    name: str
    version: int

    @property
    def file(self) -> str:
        """Its name in a folder."""
        return f"{self.name}-{self.version}.mar"

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


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
    bundle = Bundle.load(bundle_dir)
    return _write(Path(model_store), bundle, settings, lambda name: (bundle.path / name).read_bytes())


def rebuild(archive: Path, folder: Path, **changes: object) -> WorkerSettings:
    """Make an archive anew in another folder, from what `package` has put into it and nothing else.

    TorchServe runs whatever an archive holds, so each entry is verified, and what is verified is what is written.

    Args:
        archive: made by `package`.
        folder: of the new one; made if missing.
        changes: settings that are others in the new one; see `serving.settings.changed`.

    Returns:
        The settings of the new one.

    Raises:
        ServerError: if the archive is no zip file, holds other files than its bundle's, or one with another digest,
            names another handler or model, or asks TorchServe for more than `package` does.
        BundleError: if its bundle has no graph in the precision for the runtime that it shall have.
    """
    with _made_by_package(archive):
        entries = zipfile.ZipFile(archive)
    with entries:
        with _made_by_package(archive):
            of_bundle = entries.read(MANIFEST)
            manifest, packaged = _verified(entries, of_bundle, archive.name)

        def read(name: str) -> bytes:
            with _made_by_package(archive):
                return of_bundle if name == MANIFEST else _read_entry(entries, name, manifest.sha256[name])

        settings = changed(packaged, **changes)
        _write(folder, Bundle(archive, manifest), settings, read)
    return settings


def read_settings(archive: Path) -> WorkerSettings:
    """The settings of an archive that `package` or `rebuild` has made."""
    with zipfile.ZipFile(archive) as entries:
        return WorkerSettings.model_validate(_read_config(entries)["handler"])


def read_manifest(archive: Path) -> Manifest:
    """The manifest of the bundle in an archive that `package` or `rebuild` has made."""
    with zipfile.ZipFile(archive) as entries:
        return Manifest.model_validate_json(entries.read(MANIFEST))


@contextmanager
def extracted(archive: Path) -> Iterator[Path]:
    """The bundle of an archive that `rebuild` has made, in a folder that lasts as long as the block."""
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder, zipfile.ZipFile(archive) as entries:
        entries.extractall(folder)
        yield Path(folder)


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


@contextmanager
def _made_by_package(archive: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as exc:
        reason = "an archive without a bundle" if isinstance(exc, ValidationError) else exc
        raise ServerError(f"{archive} must be an archive made by `python -m serving package`, got {reason}") from exc


def _verified(entries: zipfile.ZipFile, of_bundle: bytes, file: str) -> tuple[Manifest, WorkerSettings]:
    """What an archive says of itself, if `package` says the same of its bundle and settings."""
    manifest = Manifest.model_validate_json(of_bundle)
    expected = {MANIFEST, CONFIG_FILE, MANIFEST_OF_TORCHSERVE, *manifest.sha256}
    if set(entries.namelist()) != expected:
        raise ValueError(f"other files: {', '.join(sorted(set(entries.namelist()) ^ expected))}")
    if Archive(manifest.name, manifest.version).file != file:
        raise ValueError(f"{manifest.name} version {manifest.version}")
    if entries.read(MANIFEST_OF_TORCHSERVE).decode() != _torchserve_manifest(manifest):
        raise ValueError(f"another {MANIFEST_OF_TORCHSERVE}")
    try:
        config = _read_config(entries)
        settings = WorkerSettings.model_validate(config["handler"])
        if config != model_config(settings):
            raise ValueError("what asks for more")
    except (TypeError, KeyError, ValueError, yaml.YAMLError) as exc:
        raise ValueError(f"another {CONFIG_FILE}") from exc
    return manifest, settings


def _read_entry(entries: zipfile.ZipFile, name: str, digest: str) -> bytes:
    content = entries.read(name)
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise ValueError(f"{name} with SHA-256 {found} instead of {digest}")
    return content


def _read_config(entries: zipfile.ZipFile) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(entries.read(CONFIG_FILE))
    return config


def _write(folder: Path, bundle: Bundle, settings: WorkerSettings, read: Callable[[str], bytes]) -> Path:
    """Write a bundle's archive whole; `read` gives its files by their names."""
    check_runtime(settings.runtime, settings.precision)
    bundle.onnx(settings.precision)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / Archive(bundle.manifest.name, bundle.manifest.version).file
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=folder) as stage:
        staged = Path(stage, target.name)
        # Stored, not deflated: weights hardly compress, and a worker is ready sooner.
        with zipfile.ZipFile(staged, "w", zipfile.ZIP_STORED) as entries:
            for name in sorted([MANIFEST, *bundle.manifest.sha256]):
                _add(entries, name, read(name))
            _add(entries, CONFIG_FILE, yaml.safe_dump(model_config(settings), sort_keys=False).encode())
            _add(entries, MANIFEST_OF_TORCHSERVE, _torchserve_manifest(bundle.manifest).encode())
        staged.replace(target)
    return target


def _add(entries: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.external_attr = 0o644 << 16
    entries.writestr(entry, content)


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
