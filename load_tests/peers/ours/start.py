"""How this project's server is started as one of the peers."""

from collections.abc import Sequence

from load_tests.peers.peer import Launch


def packaged_start(options: Sequence[str], launch: Launch) -> Sequence[str]:
    """Package the bundle into the scratch folder; the command that serves it until a signal comes."""
    from serving.settings import WorkerSettings
    from serving.torchserve.archive import package

    store = launch.scratch / "store"
    package(launch.bundle, model_store=store, settings=WorkerSettings(precision=launch.precision))
    where = ("--model-store", str(store), "--state", str(launch.scratch / "state"), "--port", str(launch.port))
    return [str(launch.python), "-m", "serving", "start", "--foreground", "--device", "cpu", *where, *options]
