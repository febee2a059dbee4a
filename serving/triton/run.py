"""Becomes `tritonserver`, as the package nvidia-pytriton holds it, on a model repository.

    uv venv --python 3.11 .triton
    uv pip sync --python .triton --require-hashes serving/triton/server.txt
    .triton/bin/python -m serving.triton.run models
    .triton/bin/python -m serving.triton.run models --http-port=9000 --model-control-mode=poll

It needs nothing but the standard library and that package. It listens on the loopback address, unless told otherwise;
what follows the repository is passed on to `tritonserver`.
Of nvidia-pytriton nothing but the files is used. Its Python backend is there for several Pythons and wants the one that
runs this beside it, with the shared library of that Python.
"""

import os
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from ctypes import CDLL
from importlib.util import find_spec
from pathlib import Path

STUB = "triton_python_backend_stub"
LIBRARY = f"libpython{sysconfig.get_python_version()}.so.1.0"
DEFAULTS = {
    "--http-address": "127.0.0.1",
    "--grpc-address": "127.0.0.1",
    "--metrics-address": "127.0.0.1",
    "--allow-gpu-metrics": "false",
}


def become_tritonserver(repository: Path, options: Sequence[str]) -> None:
    """Run `tritonserver` in place of this process.

    Args:
        repository: of the models.
        options: of `tritonserver`, beside the defaults here.

    Raises:
        SystemExit: if the package or the library is missing.
    """
    triton, libraries = _package(), sysconfig.get_config_var("LIBDIR")
    if not has_library():
        sys.exit(f"error: the stub must find {LIBRARY}, the shared library of this Python, got none: install it")
    given = {option.partition("=")[0] for option in options}
    command = [
        str(triton / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={_backends(triton)}",
        *(f"{name}={value}" for name, value in DEFAULTS.items() if name not in given),
        *options,
    ]
    environment = {  # the stub finds the packages of this Python by PATH
        "LD_LIBRARY_PATH": os.pathsep.join([str(triton / "external_libs"), libraries]),
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
    }
    os.execve(command[0], command, {**os.environ, **environment})


def has_library() -> bool:
    """Whether this Python's shared library is beside it or where the system's linker looks."""
    if Path(sysconfig.get_config_var("LIBDIR"), LIBRARY).is_file():
        return True
    try:
        CDLL(LIBRARY)
    except OSError:
        return False
    return True


def _package() -> Path:
    """Where the package has its `tritonserver`; it is not imported."""
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: nvidia-pytriton must be installed for {sys.executable}: see `python -m serving.triton.run`")
    return Path(spec.submodule_search_locations[0], "tritonserver")


def _backends(triton: Path) -> Path:
    """The Python backend with the stub of this Python beside it, in this environment."""
    folder = Path(sys.prefix, "share", "tritonserver", "backends")
    backend = folder / "python"
    backend.mkdir(parents=True, exist_ok=True)
    stub = triton / "python_backend_stubs" / sysconfig.get_python_version() / STUB
    for file in (*(triton / "backends" / "python").iterdir(), stub):
        with suppress(FileExistsError):
            (backend / file.name).symlink_to(file)
    return folder


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    become_tritonserver(Path(sys.argv[1]), sys.argv[2:])
