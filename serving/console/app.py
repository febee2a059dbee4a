"""The console as an ASGI application: the pages, their files, and the guard around them.

app = create_app(Setup(backend, knowledge))
"""

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from serving.console import classify, health, table
from serving.console.security import Guard
from serving.console.setup import Setup
from serving.errors import ServingError
from serving.limits import DEFAULT_LIMITS
from serving.respond import error_body

STATIC = Path(__file__).parent / "static"


def create_app(setup: Setup) -> ASGIApp:
    """The application; a page that has nothing to show says what would give it something."""
    pages = [
        *classify.routes(setup.backend, setup.knowledge),
        *health.routes(setup.metrics_url, setup.knowledge),
        *table.routes(setup.table, setup.images, setup.marked),
    ]
    files = Mount("/static", StaticFiles(directory=STATIC))
    app = Starlette(routes=[*pages, files], exception_handlers={ServingError: _refused})
    return Guard(app, DEFAULT_LIMITS.max_request_bytes)


def _refused(request: Request, error: Exception) -> Response:
    """The reply to what serving refuses, for the script of a page."""
    refusal = error if isinstance(error, ServingError) else ServingError(str(error))
    return JSONResponse(error_body(refusal), refusal.status)
