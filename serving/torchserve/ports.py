"""Where a server listens: inference and the exporter where they are told to, the rest on the loopback address."""

import ipaddress
import socket
from contextlib import ExitStack
from dataclasses import dataclass, fields

from serving.errors import ServerError

LOOPBACK = "127.0.0.1"
ANY = "0.0.0.0"


@dataclass(frozen=True)
class Ports:
    """One port per listener; all but inference and the exporter listen on the loopback address only.

    `metrics` is the exporter's; TorchServe's own metrics, which it passes on, are at `torchserve_metrics`.
    """

    inference: int
    management: int
    metrics: int
    grpc_inference: int
    grpc_management: int
    torchserve_metrics: int


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """The address at which this machine reaches what listens on `host`."""
    return LOOPBACK if host == ANY else host


def choose_ports(host: str, metrics_host: str, port: int) -> Ports:
    """Six ports in a row from `port`, or any free ones for 0.

    Raises:
        ServerError: if one of them is in use.
    """
    hosts = {"inference": host, "metrics": metrics_host}
    with ExitStack() as stack:
        found = []
        for offset, listens in enumerate(fields(Ports)):
            address, number = hosts.get(listens.name, LOOPBACK), port + offset if port else 0
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address, number))
            except OSError as exc:
                rule = "six ports in a row from --port must be free (0 takes any)"
                raise ServerError(f"{rule}, got {address}:{number}: {exc.strerror}") from exc
            found.append(listener.getsockname()[1])
    return Ports(*found)
