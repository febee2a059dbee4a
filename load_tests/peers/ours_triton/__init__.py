"""This project's model in Triton, as `python -m serving triton` writes its repository."""

from collections.abc import Sequence

from load_tests.peers.peer import Launch, Peer
from load_tests.peers.triton import LOCK, binary_tensor, unwrap


def command(launch: Launch) -> Sequence[str]:
    """Write the repository into the scratch folder; the command that serves it until a signal comes."""
    from serving.settings import WorkerSettings
    from serving.triton.repository import Entry, write
    from serving.triton.served import Served

    settings = WorkerSettings(precision=launch.precision, threads=launch.cores)
    repository = launch.scratch / "models"
    write([Entry(launch.bundle, Served(settings=settings, device="cpu", instances=1))], repository)
    ports = (f"--http-port={launch.port}", f"--metrics-port={launch.port + 1}", "--allow-grpc=false")
    return [str(launch.python), "-m", "serving.triton.run", str(repository), *ports]


PEER = Peer(
    name="ours_triton",
    lock=LOCK,
    title="ours, in Triton",
    source="docs/triton.md",
    tuning="as it comes, 1 instance of 2 threads; the answer's JSON as a tensor in binary",
    command=command,
    path="/v2/models/{model}/infer",
    ready="/v2/health/ready",
    wrap=binary_tensor("images", "answer"),
    unwrap=unwrap,
)
