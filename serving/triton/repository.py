"""A model repository: bundles → NAME/config.pbtxt and NAME/VERSION/, a bundle with what Triton needs beside it.

    write([Entry(Path("model_store/mnist-mda/1"), served)], Path("models"))

    models/requirements.txt                    what the models' Python must have
    models/mnist-mda/config.pbtxt
    models/mnist-mda/1/bundle.json, model.onnx ...     the bundle: `package` takes the folder as it is
    models/mnist-mda/1/settings.json           how it is served
    models/mnist-mda/1/model.py, serving/      the code that it was written with

The repository holds the code, and does not point at a package that is installed: whoever mounts it into NVIDIA's
container need only install public packages there, no path must be the same in two places, and a newer version of this
project changes nothing for models that are served. All is written into a folder beside the repository and renamed
into it, model by model, so a `tritonserver` that looks for changes never sees half of one.
"""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.bundle import MANIFEST, Bundle, Manifest
from serving.errors import BundleError, ServerError
from serving.lock import LOCK, locked
from serving.runtimes import check_runtime
from serving.triton.code import copy_code
from serving.triton.config import configuration
from serving.triton.served import FILE, Device, Served

CONFIG = "config.pbtxt"
REQUIREMENTS = "requirements.txt"
LOCKS: dict[Device, Path] = {
    "cpu": Path(__file__).with_name("requirements.txt"),
    "gpu": Path(__file__).with_name("requirements-gpu.txt"),
}


@dataclass(frozen=True)
class Entry:
    """A version of a model to be served.

    Attributes:
        bundle: its folder.
        served: how.
    """

    bundle: Path
    served: Served


def write(entries: Sequence[Entry], repository: Path, *, replace: bool = False) -> list[Manifest]:
    """Put bundles into a repository, beside what is there.

    Args:
        entries: the bundles, and how each is served.
        repository: made if missing.
        replace: whether a version that is there may be replaced.

    Returns:
        The manifests of the bundles.

    Raises:
        BundleError: if a bundle is not what its digests say, or has no graph in the precision for the runtime.
        ServerError: if a version is there already, or a folder of the model's name that is none of this command's.
    """
    bundles = [_checked(entry) for entry in entries]
    with _held(repository), _beside(repository) as stage:
        added = _added(bundles, entries)
        for name, versions in added.items():
            kept = _kept(repository / name, versions, replace)
            (stage / name).mkdir()
            (stage / name / CONFIG).write_text(configuration(kept | versions))
        for bundle, entry in zip(bundles, entries, strict=True):
            _write_version(bundle, entry.served, stage / bundle.manifest.name / str(bundle.manifest.version))
        shutil.copyfile(_requirements(repository, entries), stage / REQUIREMENTS)
        _move(stage, repository, added)
    return [bundle.manifest for bundle in bundles]


def _checked(entry: Entry) -> Bundle:
    bundle, settings = Bundle.load(entry.bundle), entry.served.settings
    check_runtime(settings.runtime, settings.precision)
    bundle.onnx(settings.precision)
    if settings.precision == "int8" and entry.served.device == "gpu":
        raise BundleError("precision int8 must run on the CPU, got gpu")
    return bundle


def _added(bundles: Sequence[Bundle], entries: Sequence[Entry]) -> Mapping[str, dict[int, tuple[Manifest, Served]]]:
    added: dict[str, dict[int, tuple[Manifest, Served]]] = defaultdict(dict)
    for bundle, entry in zip(bundles, entries, strict=True):
        manifest = bundle.manifest
        if manifest.version in added[manifest.name]:
            raise ServerError(f"each version must be there once, got {manifest.name} version {manifest.version} twice")
        added[manifest.name][manifest.version] = manifest, entry.served
    return added


def _kept(model: Path, added: Mapping[int, object], replace: bool) -> dict[int, tuple[Manifest, Served]]:
    """The versions of a model that the repository holds and keeps."""
    folders = {int(one.name): one for one in model.iterdir() if one.name.isdecimal()} if model.is_dir() else {}
    if model.is_file() or not all((folder / FILE).is_file() for folder in folders.values()):
        raise ServerError(f"{model} must be a model that this command has written, got another one: move it away")
    if both := sorted(folders.keys() & added.keys()) if not replace else []:
        raise ServerError(f"{model} must not hold version {both[0]} yet: replace it with --replace")
    return {n: (Bundle.load(one).manifest, Served.read(one)) for n, one in folders.items() if n not in added}


def _requirements(repository: Path, entries: Sequence[Entry]) -> Path:
    """What Python must have for all models; what GPUs need serves CPUs, too."""
    others = [Served.read(file.parent) for file in repository.glob(f"*/*/{FILE}")]
    devices = {served.device for served in (*others, *(entry.served for entry in entries))}
    return LOCKS["gpu" if "gpu" in devices else "cpu"]


def _write_version(bundle: Bundle, served: Served, target: Path) -> None:
    """The folder of a version; the copy is verified as the bundle was."""
    target.mkdir()
    for name in (MANIFEST, *bundle.manifest.files):
        shutil.copyfile(bundle.path / name, target / name)
    Bundle.load(target)
    served.write(target)
    copy_code(target)


def _move(stage: Path, repository: Path, added: Mapping[str, Mapping[int, object]]) -> None:
    """Rename what has been written to where it belongs; the configuration of a model that was there comes last."""
    old = stage / ".old"
    old.mkdir()
    (stage / REQUIREMENTS).replace(repository / REQUIREMENTS)
    for name, versions in added.items():
        staged, model = stage / name, repository / name
        if not model.exists():
            staged.replace(model)
            continue
        for version in map(str, versions):
            if (model / version).exists():
                (model / version).replace(old / f"{name}-{version}")
            (staged / version).replace(model / version)
        (staged / CONFIG).replace(model / CONFIG)


@contextmanager
def _held(repository: Path) -> Iterator[None]:
    """Make the repository's folder, if need be, and hold it; one that is new and empty is gone if the block fails."""
    is_new = not repository.exists()
    try:
        repository.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ServerError(f"--repository must be a folder, got {exc}") from exc
    with locked(repository, "triton"):
        try:
            yield
        except BaseException:
            if is_new and [one.name for one in repository.iterdir()] == [LOCK]:
                shutil.rmtree(repository)
            raise


@contextmanager
def _beside(repository: Path) -> Iterator[Path]:
    """A folder to write into, on the same file system; in the repository itself Triton would take it for a model."""
    parent = repository.resolve().parent
    if parent.stat().st_dev != repository.stat().st_dev:
        raise ServerError(f"--repository must lie on its parent's file system, got {repository}: name a folder in it")
    with tempfile.TemporaryDirectory(prefix=f".{repository.name}.", dir=parent) as stage:
        yield Path(stage)
