"""Writes a model repository into the current folder and becomes `tritonserver` on it.

python -m load_tests.peers.triton.server BUNDLE PRECISION PORT CORES
"""

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from load_tests.peers.answering import Arguments, read_arguments, wait_ms, workers_and_threads

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
CONFIGURATION = """
name: "images"
backend: "python"
max_batch_size: 32
input [{{ name: "image" data_type: TYPE_STRING dims: [1] }}]
output [{{ name: "answer" data_type: TYPE_STRING dims: [1] }}]
instance_group [{{ kind: KIND_CPU count: {instances} }}]
dynamic_batching {{ max_queue_delay_microseconds: {wait} }}
parameters [
  {{ key: "project" value: {{ string_value: "{project}" }} }},
  {{ key: "bundle" value: {{ string_value: "{bundle}" }} }},
  {{ key: "precision" value: {{ string_value: "{precision}" }} }},
  {{ key: "threads" value: {{ string_value: "{threads}" }} }}
]
"""


def write_repository(folder: Path, given: Arguments) -> None:
    """`folder/images/config.pbtxt` and its version 1."""
    version = folder / "images" / "1"
    version.mkdir(parents=True)
    shutil.copy(HERE / "model.py", version)
    instances, threads = workers_and_threads(given.cores)
    where = {"project": ROOT, "bundle": given.bundle, "precision": given.precision}
    configuration = CONFIGURATION.format(instances=instances, threads=threads, wait=1000 * wait_ms(0), **where)
    (version.parent / "config.pbtxt").write_text(configuration)


def write_backends(folder: Path, triton: Path) -> None:
    """The Python backend with the stub of this Python beside it, where Triton looks for it."""
    backend = folder / "python"
    backend.mkdir(parents=True)
    for file in (triton / "backends" / "python").iterdir():
        (backend / file.name).symlink_to(file)
    stub = "triton_python_backend_stub"
    (backend / stub).symlink_to(triton / "python_backend_stubs" / sysconfig.get_python_version() / stub)


def main() -> None:
    """Become `tritonserver`."""
    given = read_arguments()
    [package] = find_spec("pytriton").submodule_search_locations  # not imported: only the binary in it is used
    triton = Path(package) / "tritonserver"
    repository, backends = Path("models").resolve(), Path("backends").resolve()
    write_repository(repository, given)
    write_backends(backends, triton)
    command = [
        str(triton / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        f"--http-port={given.port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]
    libraries = [str(triton / "external_libs"), sysconfig.get_config_var("LIBDIR")]  # of the stub: libpython
    path = [sysconfig.get_path("scripts"), os.environ["PATH"]]  # the stub finds its Python's packages by it
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "PATH": os.pathsep.join(path)}
    os.execve(command[0], command, {**os.environ, **environment})


if __name__ == "__main__":
    main()
