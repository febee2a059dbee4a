"""The page that classifies images, with one model or with two side by side.

GET  /                                                   the page
GET  /api/models                                         who answers, and the versions of models that can be asked
GET  /api/models/NAME/VERSION                            what is known of one; see facts.py
GET  /api/models/NAME/VERSION/examples/CLASS/COMPONENT/N its mean image for N = 0, else its N-th nearest example
POST /api/models/NAME/VERSION/answer?coverage=0.9        an image → its answer; see asking.py
POST /api/models/NAME/VERSION/seen                       an image → what the model sees of it; see seen.py

An image is the body of its request, so none has to wait for another and each has its own error.
"""

import re

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.bundle import NAME_PATTERN
from serving.console.asking import asked
from serving.console.backend import Backend, Served
from serving.console.context import Knowledge, Known
from serving.console.facts import facts
from serving.console.pages import page
from serving.console.seen import seen
from serving.errors import BadRequest, ServingError, shown
from serving.parameters import read_coverage

MODEL = "/api/models/{name}/{version:int}"


class NotHere(ServingError):
    """What is asked for is not known here."""

    status = 404
    code = "not_here"


def routes(backend: Backend | None, knowledge: Knowledge) -> list[Route]:
    """The page and what it asks for.

    Args:
        backend: who answers images; None if the console was begun for a table alone.
        knowledge: of the models.
    """

    def show(request: Request) -> Response:
        return page("classify.html.jinja", "Classify", is_asked=backend is not None)

    if backend is None:
        return [Route("/", show)]

    def models(request: Request) -> Response:
        served = [{"name": one.name, "version": one.version} for one in backend.models()]
        return JSONResponse({"place": backend.place(), "models": served})

    def about(request: Request) -> Response:
        known = knowledge.of(_model(request))
        return JSONResponse(None if known is None else facts(known))

    async def answer(request: Request) -> Response:
        image = await request.body()
        result = await run_in_threadpool(asked, backend, knowledge, _model(request), image, _coverage(request))
        return JSONResponse(result)

    async def what_is_seen(request: Request) -> Response:
        image, known = await request.body(), await run_in_threadpool(_known, knowledge, request)
        return JSONResponse(await run_in_threadpool(seen, image, known.manifest.input, known.limits))

    def example(request: Request) -> Response:
        return _example(_known(knowledge, request), request)

    return [
        Route("/", show),
        Route("/api/models", models),
        Route(MODEL, about),
        Route(f"{MODEL}/answer", answer, methods=["POST"]),
        Route(f"{MODEL}/seen", what_is_seen, methods=["POST"]),
        Route(f"{MODEL}/examples/{{label:int}}/{{component:int}}/{{number:int}}", example),
    ]


def _model(request: Request) -> Served:
    name = request.path_params["name"]
    if not re.fullmatch(NAME_PATTERN, name):  # it becomes part of an address
        raise NotHere(f"model must have a name of {NAME_PATTERN}, got {shown(name)}")
    return Served(name, request.path_params["version"])


def _known(knowledge: Knowledge, request: Request) -> Known:
    known = knowledge.of(_model(request))
    if known is None:
        raise NotHere(f"model must be one whose bundle the console knows, got {_model(request)}")
    return known


def _coverage(request: Request) -> float | None:
    text = request.query_params.get("coverage")
    try:
        return None if text is None else read_coverage(float(text))
    except ValueError:
        raise BadRequest(f"coverage must be a number, got {shown(text)}") from None


def _example(known: Known, request: Request) -> Response:
    """The picture of a component."""
    at, number = (request.path_params["label"], request.path_params["component"]), request.path_params["number"]
    examples = known.examples
    pictures = () if examples is None else (examples.means.get(at), *examples.nearest.get(at, ()))
    picture = pictures[number] if number < len(pictures) else None
    if picture is None:
        raise NotHere(f"component must be one with such a picture, got {at} {number}")
    return Response(picture, media_type="image/webp")
