"""Ray Serve: a deployment with `@serve.batch`."""

from load_tests.peers.peer import Peer, module_command

PEER = Peer(
    name="ray_serve",
    title="Ray Serve",
    source="https://docs.ray.io/en/latest/serve/advanced-guides/performance.html",
    tuning="",
    command=lambda launch: module_command("load_tests.peers.ray_serve.server", launch),
    path="/",
    ready="/-/healthz",
    environment={"RAY_USAGE_STATS_ENABLED": "0"},
)
