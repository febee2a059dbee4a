"""Ray Serve: a deployment with `@serve.batch`."""

from load_tests.peers.peer import Peer, module_command

QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
IN_PYTHON = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}

PEER = Peer(
    name="ray_serve",
    title="Ray Serve",
    source="https://docs.ray.io/en/latest/serve/advanced-guides/performance.html",
    tuning=(
        "1 replica of 2 threads behind HAProxy of 1 thread, RAY_SERVE_THROUGHPUT_OPTIMIZED, batches of at most 32 that "
        "wait for nothing"
    ),
    command=lambda launch: module_command("load_tests.peers.ray_serve.server", launch),
    path="/",
    ready="/-/healthz",
    environment=QUIET,
    variants={
        "2 replicas of 1 thread": {"environment": QUIET | {"PEER_WORKERS": "2"}},
        "batches that wait 1 ms": {"environment": QUIET | {"PEER_WAIT_MS": "1"}},
        "its proxy in Python": {"environment": QUIET | IN_PYTHON},
    },
)
