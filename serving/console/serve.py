"""The console's own HTTP server."""

import socket

from starlette.types import ASGIApp

from serving.errors import ServerError

CLOSE_S = 2  # that requests in hand get when the console ends


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: an address of this machine.
        port: 0 takes any.

    Raises:
        ServerError: if it cannot.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as exc:
        raise ServerError(
            f"--host and --port must be free here (--port 0 takes any), got {host}:{port}: {exc}"
        ) from exc


def address(listener: socket.socket) -> str:
    """Where a browser of this machine finds it."""
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{name}:{port}/"


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Answer until SIGINT or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=CLOSE_S
    )
    uvicorn.Server(config).run(sockets=[listener])
