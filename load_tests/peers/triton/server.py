"""Writes a model repository into the current folder and becomes `tritonserver` on it.

python -m load_tests.peers.triton.server BUNDLE PRECISION PORT CORES
"""

import shutil
from pathlib import Path

from load_tests.peers.answering import Arguments, read_arguments, wait_ms, workers_and_threads
from serving.triton.run import become_tritonserver

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


def main() -> None:
    """Become `tritonserver`."""
    given = read_arguments()
    repository = Path("models").resolve()
    write_repository(repository, given)
    become_tritonserver(repository, [f"--http-port={given.port}", "--allow-grpc=false", "--allow-metrics=false"])


if __name__ == "__main__":
    main()
