"""Build the image, run it locked down, and ask and stop it as its users do; exit code 1 with what it does not hold.

    python -m serving.deploy.image_check                              # target slim
    python -m serving.deploy.image_check --target full --device gpu   # 6 GB, some minutes; runs it on the CPU

Docker builds and runs it if a daemon answers, else buildah, with runc or crun, as root. Nothing is left but the log
of a failure.
"""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.deploy.image_check import promises
from serving.deploy.image_check.base import default_base, make_base
from serving.deploy.image_check.buildah import Buildah
from serving.deploy.image_check.docker import Docker
from serving.deploy.image_check.engine import Container, Engine
from serving.deploy.image_check.package_index import with_index_settings
from serving.deploy.image_check.shell import Failed, Shell

PROJECT = Path(__file__).resolve().parents[3]


class Target(StrEnum):
    """What the Dockerfile can build."""

    slim = "slim"
    full = "full"


class Device(StrEnum):
    """What the full one is made for."""

    gpu = "gpu"
    cpu = "cpu"


class EngineName(StrEnum):
    """What builds."""

    docker = "docker"
    buildah = "buildah"


def main(
    target: Annotated[Target, typer.Option(help="slim: ONNX on CPUs, without torch; full: everything.")] = Target.slim,
    device: Annotated[Device, typer.Option(help="What the full one is built for.")] = Device.gpu,
    engine: Annotated[EngineName | None, typer.Option(help="By default Docker if a daemon answers.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the image and what it was built in.")] = False,
) -> None:
    """Build the image, run it locked down, and ask and stop it as its users do."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="image-check-"))
    shell = Shell(folder.with_suffix(".log"))
    shell.log.touch(mode=0o600)
    try:
        with _engine(engine, shell, folder, keep) as built_by:
            _check(built_by, shell, folder, target, device)
    except Failed as failed:
        print(f"FAILED: {failed}\nThe log is {shell.log}", file=sys.stderr)
        raise typer.Exit(1) from None
    finally:
        if not keep:
            shutil.rmtree(folder)
    shell.log.unlink()


def _check(engine: Engine, shell: Shell, folder: Path, target: str, device: str) -> None:
    began = time.monotonic()
    image = _build(engine, shell, folder, target, device)
    config, size = engine.describe(image)
    _say("built", f"target {target} by {engine.name} in {time.monotonic() - began:.0f} s")
    _say("size", promises.is_small(target, size))
    digit = _sample(shell, folder)
    began = time.monotonic()
    with engine.run(image, {"DEVICE": "cpu"}) as container:
        try:
            _ask(container, config, target, digit, began)
        except Failed:
            container.execute("sh", "-c", "tail -n 50 .serving/logs/*.log")
            raise


def _ask(container: Container, config: dict[str, Any], target: str, image: Path, began: float) -> None:
    _say("healthy", promises.becomes_healthy(container, config, began))
    _say("locked down", promises.is_locked_down(container))
    line, key = promises.asks_for_a_key(container, image, image.stem.rpartition("-")[2])
    _say("asks for a key", line)
    if target == Target.slim:
        _say("without torch", promises.has_no_torch(container))
    _say("stops", promises.stops_without_a_loss(container, image.read_bytes(), key))


def _build(engine: Engine, shell: Shell, folder: Path, target: str, device: str) -> str:
    base = default_base(PROJECT / "Dockerfile")
    if not engine.pull(base):
        base, wanted = make_base(engine, shell, base.rpartition("-")[2], folder), base
        _say("base", f"Debian and its Python, by mmdebstrap: {wanted} cannot be pulled")
    build_base = with_index_settings(engine, shell, base, folder)
    return engine.build(PROJECT, target, target, {"DEVICE": device, "BASE": base, "BUILD_BASE": build_base})


def _sample(shell: Shell, folder: Path) -> Path:
    """An image of a digit, whose label its name ends with."""
    shell.run(sys.executable, "-m", "training", "samples", "mnist", "--count", "1", "--out", folder / "samples")
    return next((folder / "samples").iterdir())


@contextmanager
def _engine(wanted: EngineName | None, shell: Shell, folder: Path, keep: bool) -> Iterator[Engine]:
    has_docker = shutil.which("docker") is not None and shell.attempt("docker", "version").returncode == 0
    if wanted == EngineName.docker and not has_docker:
        raise Failed("--engine docker must find a daemon that answers, got none")
    engine: Engine = Docker(shell) if has_docker and wanted != EngineName.buildah else Buildah(shell, folder)
    try:
        yield engine
    finally:
        if not keep:
            engine.clean()


def _say(what: str, line: str) -> None:
    print(f"{what:16}{line}", flush=True)


if __name__ == "__main__":
    typer.run(main)
