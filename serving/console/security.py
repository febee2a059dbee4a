"""Who may ask the console, and what its pages may do.

    Guard(app)      an ASGI application around another

The console answers whoever reaches its port and acts with the server's key, so a foreign page in the same browser must
not be able to use it. It answers only if the browser was told a loopback name (no DNS name that a stranger has pointed
here), and only its own pages: what else a browser does on behalf of another page is refused. Its pages may load nothing
from elsewhere, run no script but its own files, and be shown in no frame.
"""

import ipaddress
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import BadRequest, ImageTooLarge, ServingError
from serving.respond import error_body

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
READING = ("GET", "HEAD")


class Forbidden(BadRequest):
    """The request comes from elsewhere than the console's own pages."""

    status = 403
    code = "forbidden"


class Guard:
    """Refuses what is not of the console's own pages, and adds the headers that bind these.

    Args:
        app: the console.
        max_body_bytes: of one request.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # there are no web sockets; the start and end of the application
            await self._app(scope, receive, send)
            return

        async def send_bound(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            check_origin(scope["method"], Headers(scope=scope))
            await self._app(scope, _Limited(receive, self._max_body_bytes), send_bound)
        except ServingError as error:
            await JSONResponse(error_body(error), error.status)(scope, receive, send_bound)


class _Limited:
    """The body of a request, as far as it is not too long."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._read = 0

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._read += len(message.get("body", b""))
        if self._read > self._most:
            raise ImageTooLarge(f"request to the console must have at most {self._most} bytes, got more")
        return message


def check_origin(method: str, headers: Headers) -> None:
    """Refuse a request that is not of the console's own pages, or not to a loopback name.

    Args:
        method: of the request; one that reads may also come from no page at all, as when somebody types the address.
        headers: of the request.

    Raises:
        Forbidden: which says why.
    """
    host, origin, site = (headers.get(name, "") for name in ("host", "origin", "sec-fetch-site"))
    if not is_loopback_name(host):
        raise Forbidden(f"Host must be localhost or a loopback address, got {host[:100]!r}")
    if origin and origin != f"http://{host}":
        raise Forbidden(f"Origin must be the console's own, got {origin[:100]!r}")
    is_visit = method in READING and headers.get("sec-fetch-mode") == "navigate"
    if site not in ("", "none", "same-origin") and not is_visit:
        raise Forbidden(f"Sec-Fetch-Site must be same-origin, got {site[:100]!r}")
    if method not in READING and not origin and site != "same-origin":
        raise Forbidden(f"{method} must come from one of the console's pages, got neither Origin nor Sec-Fetch-Site")


def is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine by itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
