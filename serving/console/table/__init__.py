"""The page on a table that `score` wrote: filters, thumbnails, marks, and marked images written out as folders.

GET  /table                          the page; its filters stand in its address
GET  /api/table                      what is known of the table, and what people have to be told
GET  /api/table/rows?label=7&page=2  a page of rows, and what other filters would give
GET  /api/table/thumbnails/17        the image of a row
POST /api/table/marks                {"row": 17, "label": "1"}; a label of null takes the mark away
GET  /api/table/written              how far the writing of marked images is
POST /api/table/written              begins it
"""

import asyncio
from pathlib import Path
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.console.pages import page
from serving.console.table.answer import page_as_json, progress_as_json
from serving.console.table.filters import Filters
from serving.console.table.naming import check_label
from serving.console.table.opened import Opened, open_for_console
from serving.console.table.query import ask
from serving.errors import BadParameter, BadRequest, Draining, shown


def routes(table: str | None, images: str | None, marked: Path | None) -> list[Route]:
    """The page and what it asks for.

    Args:
        table: what score has written; None if no table was named.
        images: where the images are, if not where the table says.
        marked: folder that marks and marked images are written to; beside the table if left out.

    Raises:
        ServingError: if the table, the images or the marks cannot be read.
    """
    if table is None and (images is not None or marked is not None):
        raise BadParameter("--table must be named where --images or --marked is, got none")
    opened = None if table is None else open_for_console(table, images, marked)

    def show(request: Request) -> Response:
        return page("table.html.jinja", "Table", table=None if opened is None else opened.table.place.name)

    return [Route("/table", show), *([] if opened is None else [*_reading(opened), *_writing(opened)])]


def _reading(opened: Opened) -> list[Route]:
    """What the page shows."""

    def facts(request: Request) -> Response:
        return _json(opened.facts())

    def rows(request: Request) -> Response:
        filters, marks = Filters.of(request.query_params), opened.marks.all()
        found = ask(opened.rows, filters, marks)
        opened.thumbnails.look_for([row["key"] for row in found.rows])
        return _json(page_as_json(found, filters.label, marks, opened.rows.known))

    async def thumbnail(request: Request) -> Response:
        row = await run_in_threadpool(_row, opened, request.path_params["row"])
        awaited = asyncio.wrap_future(opened.thumbnails.get(row["key"]))
        try:
            made = await asyncio.shield(awaited)  # others may wait for it when this browser does not any more
        except asyncio.CancelledError:
            raise Draining from None
        return Response(made.content, media_type=made.media_type)

    return [
        Route("/api/table", facts),
        Route("/api/table/rows", rows),
        Route("/api/table/thumbnails/{row:int}", thumbnail),
    ]


def _writing(opened: Opened) -> list[Route]:
    """What the page changes."""

    async def mark(request: Request) -> Response:
        number, label = _mark_in(await request.body())
        return _json({"marked": await run_in_threadpool(_set_mark, opened, number, label)})

    def begin(request: Request) -> Response:
        opened.writing.begin()
        return progress(request)

    def progress(request: Request) -> Response:
        return _json(progress_as_json(opened.writing.progress(), opened.folder))

    return [
        Route("/api/table/marks", mark, methods=["POST"]),
        Route("/api/table/written", progress),
        Route("/api/table/written", begin, methods=["POST"]),
    ]


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")  # where what is no number becomes null


def _mark_in(body: bytes) -> tuple[int, str | None]:
    """The row and the label that a request names.

    Raises:
        BadRequest: if it is no such request.
    """
    try:
        asked = orjson.loads(body)
        row, label = asked["row"], asked["label"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as exc:
        raise BadRequest('request must be JSON like {"row": 17, "label": "1"}, got something else') from exc
    if type(row) is not int or not (label is None or isinstance(label, str)):
        raise BadRequest(f"row must be a whole number and label a text or null, got {shown(row)} and {shown(label)}")
    return row, label


def _set_mark(opened: Opened, number: int, label: str | None) -> int:
    row = _row(opened, number)
    if label is not None and label not in opened.rows.known.labels:
        check_label(label)
    return opened.marks.set(row["key"], label, row["label"])


def _row(opened: Opened, number: int) -> dict[str, Any]:
    if not 0 <= number < opened.rows.known.rows:
        raise BadParameter(f"row must be one of the table's {opened.rows.known.rows}, got {number}")
    return opened.rows.take([number])[0]
