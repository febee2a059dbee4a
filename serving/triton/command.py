"""The command `triton`: bundles, or what a TorchServe serves here, into a model repository for Triton.

python -m serving triton model_store/mnist-mda/1 --repository models
python -m serving triton --from-state .serving --repository models
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from serving.bundle import Manifest
from serving.cores import WORKERS_PER_GPU, threads, workers
from serving.errors import ServerError
from serving.options import takes_settings
from serving.settings import DEFAULT_SETTINGS, WorkerSettings, changed
from serving.torchserve.archive import Archive, extracted, read_settings
from serving.torchserve.state import ARCHIVES, Server, load
from serving.triton.repository import Entry, write
from serving.triton.served import Device, Served

UNUSED = "timeout_s"  # Triton replaces no instance that hangs


@takes_settings("as there, or its default", without=(UNUSED,))
def triton(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Bundle folders, <name>/<version>.", metavar="[BUNDLE...]")
    ] = None,
    *,
    repository: Annotated[Path, typer.Option(help="Folder of the models; made if missing.")],
    from_state: Annotated[
        Path | None, typer.Option(help="Folder of a server that `start` began: its models, versions and settings.")
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="What the instances compute on.", show_default="cpu, or as the server there")
    ] = None,
    request_log: Annotated[
        Path | None, typer.Option(help="Folder of a request log, on the machine that serves; none by default.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace versions that are there.")] = False,
    **settings: object,
) -> None:
    """Write bundles into a model repository for Triton Inference Server, beside the versions that are there.

    Triton answers by the newest version where none is named. Workers are instances of each version (of each GPU, on
    GPUs), the batch size is Triton's preferred one, the images of one request its largest.
    """
    if bool(bundles) == (from_state is not None):
        raise ServerError("bundles, or the state folder of a server, must be named, got both or neither")
    log = None if request_log is None else str(request_log.resolve())
    with _found(bundles or [], from_state) as (found, device_there):
        chosen = device or device_there
        entries = [Entry(folder, _served(changed(one, **settings), chosen, log)) for folder, one in found]
        manifests = write(entries, repository, replace=replace)
    for manifest, entry in zip(manifests, entries, strict=True):
        print(f"{manifest.name} version {manifest.version}: {_described(entry.served)}")
    if from_state is not None:
        _tell_defaults(_server(from_state), manifests)
    print(f"The repository is {repository}: tritonserver --model-repository={repository}")


@contextmanager
def _found(bundles: list[Path], state: Path | None) -> Iterator[tuple[list[tuple[Path, WorkerSettings]], Device]]:
    """The folders of the bundles and the settings of each, and the device that they are served on."""
    if state is None:
        yield [(bundle, DEFAULT_SETTINGS) for bundle in bundles], "cpu"
        return
    server = _server(state)
    archives = [state / ARCHIVES / Archive(name, version).file for name, version in server.versions]
    with ExitStack() as stack:
        found = [(stack.enter_context(extracted(archive)), read_settings(archive)) for archive in archives]
        yield found, "gpu" if server.gpus else "cpu"


def _server(state: Path) -> Server:
    server = load(state)
    if server is None:
        raise ServerError(f"a server must run in {state}, got none: start one, or name bundles")
    return server


def _served(settings: WorkerSettings, device: Device, request_log: str | None) -> Served:
    """How a version is served; what its settings leave to the machine is of the one that this runs on."""
    instances = settings.workers or (WORKERS_PER_GPU if device == "gpu" else workers(settings, 0))
    return Served(settings=settings, device=device, instances=instances, request_log=request_log)


def _described(served: Served) -> str:
    """Precision, instances and threads, and what must be there for them."""
    settings, instances = served.settings, _counted(served.instances, "instance")
    by = " by torch, which must be there" if settings.runtime == "torchscript" else ""
    if served.device == "gpu":
        return f"{settings.precision}{by}, {instances} on each GPU"
    of_each = threads(settings)
    here = "" if settings.workers else f", by the {of_each * served.instances} cores here (--workers, --threads)"
    return f"{settings.precision}{by}, {instances} of {_counted(of_each, 'thread')} on the CPU{here}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _tell_defaults(server: Server, manifests: list[Manifest]) -> None:
    """Say where Triton answers by another version, if none is named, than the server does."""
    for name, history in server.history.items():
        newest = max(one.version for one in manifests if one.name == name)
        if newest != history[-1]:
            print(f"Where no version of {name} is named, the server answers by {history[-1]}, Triton by {newest}.")
