"""Ray Serve on a cluster of this machine alone, behind its HAProxy.

    python -m load_tests.peers.ray_serve.server BUNDLE PRECISION PORT CORES

What the environment tells Ray Serve it reads as it is imported, in each of its processes.
"""

import os
import signal
from pathlib import Path

from load_tests.peers.answering import Arguments, read_arguments, workers_and_threads

MAX_WAITING = 256  # requests that one replica takes at a time


def switch(port: int) -> None:
    """Have Ray Serve take its quick ways, on ports next to `port`, with its files in the current folder."""
    numbered = ("FALLBACK_PROXY_HTTP_PORT", "FALLBACK_PROXY_GRPC_PORT", "HAPROXY_STATS_PORT", "HAPROXY_METRICS_PORT")
    ports = {name: port + n for n, name in enumerate(numbered, 1)}
    here = Path.cwd()
    files = {
        "HAPROXY_CONFIG_FILE_LOC": here / "haproxy.cfg",
        "HAPROXY_SOCKET_PATH": here / "admin.sock",
        "HAPROXY_METRICS_SOCKET_PATH": here / "metrics.sock",
        "HAPROXY_SERVER_STATE_BASE": here,
        "HAPROXY_SERVER_STATE_FILE": here / "state",
    }
    quick = {"ENABLE_HA_PROXY": 1, "THROUGHPUT_OPTIMIZED": 1, "HAPROXY_NBTHREAD": 1}
    chosen = {f"RAY_SERVE_{name}": str(value) for name, value in {**ports, **files, **quick}.items()}
    os.environ |= chosen | {name: value for name, value in os.environ.items() if name in chosen}


def serve_until_told(given: Arguments) -> None:
    """Serve until a signal comes."""
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from load_tests.peers.ray_serve.deployment import Classifier

    signals = {signal.SIGINT, signal.SIGTERM}
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    ray.init(num_cpus=given.cores, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port}, logging_config=quiet)
    options = {
        "num_replicas": workers_and_threads(given.cores)[0],
        "max_ongoing_requests": MAX_WAITING,
        "logging_config": quiet,
    }
    serve.run(Classifier.options(**options).bind(given), route_prefix="/")
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.sigwait(signals)
    ray.shutdown()


def main() -> None:
    """Serve what the command line names."""
    given = read_arguments()
    switch(given.port)
    serve_until_told(given)


if __name__ == "__main__":
    main()
