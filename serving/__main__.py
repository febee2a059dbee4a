"""The command line of serving: package, start, stop, status, deploy, rollback, classify, score, and what is beside.

python -m serving package model_store/mnist-mda/1
python -m serving start
python -m serving classify seven.png
python -m serving stop
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape

from serving import client
from serving.answer_table import print_answers
from serving.batch.command import score
from serving.batch.summary.command import summarize
from serving.console.command import console
from serving.errors import ServerError, ServingError
from serving.keys import client_key
from serving.options import takes_settings
from serving.settings import DEFAULT_SETTINGS, changed
from serving.start_text import place_of_key, print_next, print_started
from serving.status_table import print_speedup, print_status
from serving.torchserve import launch, versions
from serving.torchserve.archive import package as package_bundle
from serving.torchserve.gpus import DeviceChoice
from serving.torchserve.management import inference_key
from serving.torchserve.ports import LOOPBACK
from serving.torchserve.readiness import unwatched
from serving.torchserve.signals import Interrupted, finishing, raise_interrupted
from serving.torchserve.state import ARCHIVES, Server, load
from serving.triton.command import triton

app = typer.Typer(
    help="Serve bundles with TorchServe, ask the server, or score a folder of images without one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.command()(score)
app.command()(summarize)
app.command()(console)
app.command()(triton)

StateOption = Annotated[Path, typer.Option(help="The server's folder: configuration, logs, and which process it is.")]
StoreOption = Annotated[Path, typer.Option(help="Folder of the .mar archives.")]


@app.command()
@takes_settings()
def package(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders, <name>/<version>.", metavar="BUNDLE...")],
    model_store: StoreOption = launch.MODEL_STORE,
    **settings: object,
) -> None:
    """Make bundles into the archives that `start` serves."""
    for bundle in bundles:
        made = package_bundle(bundle, model_store=model_store, settings=changed(DEFAULT_SETTINGS, **settings))
        print(f"Packaged {bundle} as {made} ({made.stat().st_size / 1e6:.1f} MB)")


@app.command()
@takes_settings("as packaged")
def start(
    models: Annotated[list[str] | None, typer.Option(help="Models to serve, by name; again, or with commas.")] = None,
    device: Annotated[DeviceChoice, typer.Option(help="auto takes the GPUs that there are.")] = "auto",
    port: Annotated[int, typer.Option(min=0, max=65530, help="Takes this port and the next five; 0, any.")] = 8080,
    host: Annotated[str, typer.Option(help="Address of the inference interface.")] = LOOPBACK,
    metrics_host: Annotated[str, typer.Option(help="Address of /metrics, /ready and /live, without a key.")] = LOOPBACK,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until SIGTERM or Ctrl-C, then stop.")] = False,
    token_auth: Annotated[bool | None, typer.Option(help="Ask clients for a key; by default beyond localhost.")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="JSON file of the keys; made if missing.", show_default="keys.json in --state")
    ] = None,
    model_api: Annotated[
        bool, typer.Option("--model-api", help="Let `deploy` and `rollback` change versions.")
    ] = False,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file: inference by TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its private key, unencrypted.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that the workers may take.")] = launch.START_TIMEOUT_S,
    model_store: StoreOption = launch.MODEL_STORE,
    state: StateOption = launch.STATE,
    stock: Annotated[bool, typer.Option("--stock", help="Run TorchServe without any of our changes to it.")] = False,
    **settings: object,
) -> None:
    """Start the server and return when every worker can answer."""
    raise_interrupted()
    names = [name.strip() for entry in models or [] for name in entry.split(",") if name.strip()]
    try:
        server = launch.start(
            names,
            model_store=model_store,
            state=state,
            device=device,
            host=host,
            port=port,
            metrics_host=metrics_host,
            ready_timeout_s=timeout,
            token_auth=token_auth,
            key_file=key_file,
            model_api=model_api,
            certificate=tls_certificate,
            private_key=tls_key,
            stock=stock,
            **settings,
        )
    except Interrupted:
        print("Interrupted; nothing is left running.", file=sys.stderr)
        raise typer.Exit(130) from None
    try:
        print_started(server, state, place_of_key(key_file, state, stock))
        if foreground:
            launch.wait(server, state)
        else:
            print_next(server, state)
    except Interrupted:
        _stop(state, launch.DRAIN_S)


@app.command()
def stop(
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds to answer what was accepted; 0 drops it.")
    ] = launch.DRAIN_S,
    state: StateOption = launch.STATE,
) -> None:
    """Refuse new requests, answer those that were accepted, and stop the server; no error if none runs."""
    raise_interrupted()
    _stop(state, drain)


@app.command()
@takes_settings("as now")
def deploy(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, <name>/<version>.")],
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that its workers may take.")
    ] = versions.DEPLOY_TIMEOUT_S,
    state: StateOption = launch.STATE,
    **settings: object,
) -> None:
    """Serve a new version of a model beside the old one, and make it the default once all of its workers can answer."""
    raise_interrupted()
    try:
        new = versions.deploy(bundle, state, timeout, **settings)
    except Interrupted:
        raise _as_it_was() from None
    print(f"{new.name} is version {new.version} now; python -m serving rollback {new.name}  undoes it")
    server = load(state)
    if server is not None and str(new) in server.speedups:
        print_speedup(str(new), server.speedups[str(new)])


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="Name of the model.")], state: StateOption = launch.STATE
) -> None:
    """Make the version before the last deploy the default again, and take the deployed one away."""
    raise_interrupted()
    try:
        before, gone = versions.rollback(model, state)
    except Interrupted:
        raise _as_it_was() from None
    print(f"{model} is version {before} again; version {gone} is gone")


@app.command()
def status(state: StateOption = launch.STATE) -> None:
    """Show each model's workers; exit code 0: ready, 1: not, or not watched, or it drains, 3: no server runs."""
    statuses, server = launch.status(state), load(state)
    if statuses is None or server is None:
        print(f"No server runs in {state}.")
        raise typer.Exit(3)
    print_status(statuses, server, state)
    print(f"The server is at {server.url}, since {server.started}.")
    fault = unwatched(server)
    if fault is not None:
        print(f"Not ready: {fault}.")
    if fault is not None or not all(one.is_ready for one in statuses):
        raise typer.Exit(1)


@app.command()
def classify(
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE...")],
    model: Annotated[str | None, typer.Option(help="Not needed if one model is served.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Likeliest classes to show of each image.")] = 1,
    coverage: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Show labels among which this share of images has its own.",
            show_default=f"{client.COVERAGE:g}, if the model can tell",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the raw answers, one a line.")] = False,
    url: Annotated[str | None, typer.Option(help="A server elsewhere.", show_default="the one started here")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="JSON file with the key; needed for a server elsewhere.")
    ] = None,
    state: StateOption = launch.STATE,
) -> None:
    """Classify images by the running server; exit code 1 if one of them got no answer.

    An image that is less typical than all but 1 % of the model's held-out images is marked; of a model without those,
    one that is less dense than 99 % of its test images, if the server was started here.
    The key of a server elsewhere may also stand in the variable DISCRIMINANT_INFERENCE_KEY.
    """
    server = None if url else load(state)
    key = inference_key(state) if server and key_file is None else client_key(key_file, os.environ)
    name = model or _only_model(server)
    address, trusted = (server.url, server.trusted) if server else (url or client.DEFAULT_URL, True)
    with client.connect(address, key, trusted) as connection:
        answers = list(client.classify_all(connection, name, map(_read, images), top_k, coverage))
    if json:
        for answer in answers:
            print(orjson.dumps(answer).decode())
    else:
        print_answers(images, answers, state / ARCHIVES if server else None)
    if any("error" in answer for answer in answers):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what serving refuses is one red line, not a traceback."""
    try:
        app()
    except ServingError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(1)


def _stop(state: Path, drain_s: float) -> None:
    """Stop the server, whatever signal comes."""
    try:
        print(launch.stop(state, drain_s=drain_s), flush=True)
    except Interrupted:
        with finishing():
            print(launch.stop(state, drain_s=0), flush=True)


def _as_it_was() -> typer.Exit:
    print("Interrupted; the server is as it was.", file=sys.stderr)
    return typer.Exit(130)


def _only_model(server: Server | None) -> str:
    if server is None:
        raise ServerError("--model must be given where no server was started here, got none")
    if len(server.models) > 1:
        raise ServerError(f"--model must be one of {', '.join(server.models)}, got none")
    return server.models[0]


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as exc:
        raise ServingError(f"{image} must be a readable file, got {exc.strerror}") from exc


if __name__ == "__main__":
    main()
