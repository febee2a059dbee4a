"""Load tests and benchmarks that measure: `python -m load_tests --help`; `locustfile.py` is locust's own."""

import typer

from load_tests import bench_serve
from load_tests.capacity import command as capacity
from load_tests.compare import command as compare
from load_tests.growth import command as growth
from load_tests.offline import bench, beside
from load_tests.peers import command as peers
from load_tests.soak import command as soak
from serving.torchserve.signals import Interrupted, raise_interrupted

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True, help=__doc__)
app.command("serve")(bench_serve.main)
app.command("batch")(bench.main)
app.command("beside")(beside.main)
app.command("capacity")(capacity.main)
app.command("compare")(compare.main)
app.command("growth")(growth.main)
app.command("soak")(soak.main)
app.command("peers")(peers.main)

if __name__ == "__main__":
    raise_interrupted()  # so that a command ends what it has begun
    try:
        app()
    except Interrupted:
        raise SystemExit("error: a signal came; nothing is left running") from None
