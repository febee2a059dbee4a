"""Ray Serve: a deployment with `@serve.batch`."""

from load_tests.peers.peer import Peer, module_command

PEER = Peer(
    name="ray_serve",
    title="Ray Serve",
    source="https://docs.ray.io/en/latest/serve/advanced-guides/performance.html",
    tuning=(
        "1 replica of 2 threads behind HAProxy of 1 thread, RAY_SERVE_THROUGHPUT_OPTIMIZED, batches of at most 32 "
        "without a wait. Tried besides: its proxy in Python, 2 replicas of 1 thread, a wait of 1 ms, one more thread"
    ),
    command=lambda launch: module_command("load_tests.peers.ray_serve.server", launch),
    path="/",
    ready="/-/healthz",
    environment={"RAY_USAGE_STATS_ENABLED": "0"},
)
